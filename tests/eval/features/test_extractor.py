"""The extractor with a toy network: batches, padding, devices, grey images, descriptions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.features import extractor, load_extractor
from eval.features.networks import Network


def toy_features(parameters, image_NxHxWx3):
    x = image_NxHxWx3.astype(jnp.float32)
    return {"pool": x.mean((1, 2)) * parameters["w"], "total": x.sum((1, 2, 3))[:, None]}


TOY = Network(
    description={"network": "toy"},
    layout=lambda: {"w": (3,)},
    parameters_from=dict,
    prepare=lambda x: x[:, ::2],
    features=toy_features,
)
TENSORS = {"w": np.array([1, 2, 3], np.float32)}


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(extractor.NETWORKS, "toy", TOY)


def images(num, channels=3):
    return np.random.default_rng(num).integers(0, 256, (num, 6, 4, channels), np.uint8)


@pytest.mark.parametrize("batch_size", [1, 8, 24])
@pytest.mark.parametrize("num", [1, 8, 37])
def test_rows_are_those_of_the_images(num, batch_size):
    image_NxHxWx3 = images(num)
    outputs = extractor.Extractor("toy", TENSORS, batch_size)(image_NxHxWx3)
    half = image_NxHxWx3[:, ::2].astype(np.float32)
    assert outputs["pool"].dtype == np.float32
    np.testing.assert_allclose(outputs["pool"], half.mean((1, 2)) * TENSORS["w"], rtol=1e-5)
    np.testing.assert_allclose(outputs["total"], half.sum((1, 2, 3))[:, None], rtol=1e-5)


def test_the_batch_is_split_over_all_devices():
    run = extractor.Extractor("toy", TENSORS, batch_size=9)
    num = jax.local_device_count()
    assert num == 8
    assert run.batch_size == 16
    assert run._sharding.shard_shape((16, 6, 4, 3)) == (2, 6, 4, 3)


def test_grey_is_repeated():
    grey = images(5, channels=1)
    run = extractor.Extractor("toy", TENSORS, batch_size=8)
    expected = run(grey.repeat(3, axis=3))
    for name, x in run(grey).items():
        np.testing.assert_array_equal(x, expected[name])


@pytest.mark.parametrize(
    "image_NxHxWxC",
    [
        np.zeros((2, 4, 4, 3), np.float32),
        np.zeros((2, 4, 4, 4), np.uint8),
        np.zeros((0, 4, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.uint8),
    ],
)
def test_other_images_are_refused(image_NxHxWxC):
    with pytest.raises(ValueError, match=r"must be uint8 \[N, H, W, C\]"):
        extractor.Extractor("toy", TENSORS)(image_NxHxWxC)


def test_description_names_the_weights():
    a = extractor.Extractor("toy", TENSORS)
    b = extractor.Extractor("toy", {"w": TENSORS["w"] + np.float32(1e-6)})
    assert a.description == {"network": "toy", "weights_sha256": a.weights_sha256}
    assert len(a.weights_sha256) == 64
    assert a.weights_sha256 != b.weights_sha256
    assert a.weights_sha256 == extractor.Extractor("toy", TENSORS, batch_size=3).weights_sha256


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="'resnet', but must be one of inception, dinov2"):
        load_extractor("resnet", tmp_path / "x.pth")
    with pytest.raises(ValueError, match="batch size is 0"):
        extractor.Extractor("toy", TENSORS, batch_size=0)
