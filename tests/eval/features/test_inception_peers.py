"""Inception-v3 beside torch-fidelity and pytorch-fid, with random weights of the real shape."""

import runpy
from pathlib import Path
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest

from eval import metrics
from eval.features import inception, load_extractor
from eval.features.random_weights import random_tensors
from eval.statistics import fit_gaussian

pytestmark = pytest.mark.peers

MAKE = Path(__file__).parents[2] / "fixtures" / "make_inception.py"


def crops(num, side, seed):
    """uint8 [num, side, side, 3]: random crops of photographs."""
    import skimage.data

    photographs = [skimage.data.astronaut(), skimage.data.coffee()]
    rng = np.random.default_rng(seed)
    images = []
    for i in range(num):
        photograph = photographs[i % len(photographs)]
        top, left = (rng.integers(0, size - side) for size in photograph.shape[:2])
        images.append(photograph[top : top + side, left : left + side])
    return np.stack(images)


def relative_error(actual, expected):
    return np.abs(actual - expected).max() / np.abs(expected - expected.mean(0)).max()


@pytest.fixture(scope="module")
def fidelity():
    """torch-fidelity's network."""
    return runpy.run_path(str(MAKE))["build"](random_tensors(inception.layout()))


@pytest.fixture(scope="module")
def pytorch_fid():
    """pytorch-fid's network, without its own resizing and scaling."""
    import torch
    from pytorch_fid import inception as peer

    tensors = random_tensors(inception.layout())
    state = {name: torch.from_numpy(x) for name, x in tensors.items()}
    with mock.patch.object(peer, "load_state_dict_from_url", return_value=state):
        return peer.InceptionV3([3], resize_input=False, normalize_input=False).eval()


@pytest.fixture(scope="module")
def extractor(fidelity, tmp_path_factory):
    """Ours, from a .pth file with torch-fidelity's names."""
    import torch

    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(fidelity.state_dict(), path)
    return load_extractor("inception", path, batch_size=16)


def run_fidelity(fidelity, image_NxHxWx3):
    import torch

    maps = []
    hook = fidelity.Mixed_6d.branch1x1.register_forward_hook(lambda *a: maps.append(a[2]))
    with torch.no_grad():
        parts = [fidelity(x) for x in torch.from_numpy(image_NxHxWx3).permute(0, 3, 1, 2).split(16)]
    hook.remove()
    pool, logits, _ = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    spatial_Nx7xHxW = torch.cat(maps)[:, :7]
    # NHWC, as the evaluator of ADM flattens it.
    spatial = spatial_Nx7xHxW.permute(0, 2, 3, 1).reshape(len(pool), -1).numpy()
    return {"pool": pool, "logits": logits, "spatial": spatial}


def test_both_packages_have_one_layout(fidelity):
    from pytorch_fid import inception as peer

    state = fidelity.state_dict()
    with mock.patch.object(peer, "load_state_dict_from_url", return_value=state):
        network = peer.fid_inception_v3()  # loads strictly
    for state in (fidelity.state_dict(), network.state_dict()):
        shapes = {
            name: tuple(x.shape)
            for name, x in state.items()
            if not name.endswith("num_batches_tracked")
        }
        assert shapes == inception.layout()


@pytest.mark.parametrize("side", [32, 299, 340])
def test_features(extractor, fidelity, side):
    image_NxHxWx3 = crops(6, side, seed=side)
    expected = run_fidelity(fidelity, image_NxHxWx3)
    actual = extractor(image_NxHxWx3)
    for name in ("pool", "spatial", "logits"):
        assert relative_error(actual[name], expected[name]) < 1e-3, name


def test_network_of_pytorch_fid(extractor, pytorch_fid):
    import torch

    image_NxHxWx3 = crops(6, 64, seed=1)
    resized = (np.asarray(inception.resize(jnp.asarray(image_NxHxWx3))) - 128) / 128
    with torch.no_grad():
        (pool,) = pytorch_fid(torch.from_numpy(resized).permute(0, 3, 1, 2))
    assert relative_error(extractor(image_NxHxWx3)["pool"], pool[:, :, 0, 0].numpy()) < 1e-3


@pytest.mark.filterwarnings("ignore::eval.statistics.SmallSetWarning")
def test_fid(extractor, fidelity):
    # benchmarks/features.py compares FID over more images.
    sets = crops(48, 32, seed=0), crops(48, 40, seed=1)
    ours = [fit_gaussian(extractor(images)["pool"]) for images in sets]
    theirs = [fit_gaussian(run_fidelity(fidelity, images)["pool"]) for images in sets]
    expected = metrics.frechet_distance(*theirs)
    assert metrics.frechet_distance(*ours) == pytest.approx(expected, rel=1e-3)
