"""DINOv2 beside transformers and torchvision, from a file to features at the real shape."""

import dataclasses
import runpy
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from eval.features import dinov2, load_extractor, weights

pytestmark = pytest.mark.peers

MAKE = Path(__file__).parents[2] / "fixtures" / "make_dinov2.py"
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 40, 30, 3), np.uint8)


@pytest.fixture(scope="module")
def network():
    """transformers' ViT-L/14 at its real shape with random weights that tell images apart."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, image_size=518
    )
    network = Dinov2Model(config).eval()
    with torch.no_grad():
        for name, x in network.named_parameters():
            if x.ndim == 1 or "position" in name:
                x += 0.1 * torch.randn_like(x)
    return network


@pytest.fixture(scope="module")
def path(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dinov2-large")
    network.save_pretrained(folder)
    return folder / "model.safetensors"


def prepared():
    """What dgm-eval feeds: float32 [N, 3, 224, 224]."""
    import torch
    from PIL import Image
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.Resize((224, 224), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    return torch.stack([torch.as_tensor(transform(Image.fromarray(x))) for x in IMAGES])


def run(network, **arguments):
    import torch

    with torch.no_grad():
        return network(prepared(), **arguments).pooler_output.numpy()


def assert_close(actual, expected):
    error = np.linalg.norm(actual - expected) / np.linalg.norm(expected[0] - expected[1])
    assert error < 1e-3


def test_preprocessing():
    x_NxHxWx3 = (dinov2.prepare(IMAGES) / np.float32(255) - dinov2.MEAN) / dinov2.STD
    np.testing.assert_allclose(x_NxHxWx3.transpose(0, 3, 1, 2), prepared().numpy(), atol=1e-6)


def test_features_of_transformers(network, path):
    """With the position embedding resampled as in transformers."""
    config = dataclasses.replace(dinov2.DinoConfig(), position_offset=0.0)
    parameters = jax.device_put(dinov2.parameters_from(weights.read(path, "dinov2")))
    features = jax.jit(partial(dinov2.features, config=config))
    assert_close(features(parameters, dinov2.prepare(IMAGES))["pool"], run(network))


def test_extractor(network, path):
    """With the position embedding resampled as in the authors' code: the published FD-DINOv2."""
    import torch

    position = network.embeddings.position_embeddings
    grid = position.detach()[0, 1:].reshape(37, 37, 1024).numpy()
    grid = runpy.run_path(str(MAKE))["resample"](grid, 16, 0.1).reshape(1, 256, 1024)
    resampled = torch.cat([position.detach()[:, :1], torch.from_numpy(grid)], dim=1)
    network.embeddings.position_embeddings = torch.nn.Parameter(resampled)
    try:
        expected = run(network)
    finally:
        network.embeddings.position_embeddings = position
    assert_close(load_extractor("dinov2", path, batch_size=2)(IMAGES)["pool"], expected)
