"""DINOv2 beside frozen outputs of transformers and PyTorch."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from eval.features import dinov2
from eval.features.random_weights import random_tensors

FIXTURE = dict(np.load(Path(__file__).parents[2] / "fixtures" / "dinov2.npz"))
TINY = dinov2.DinoConfig(
    image_size=56, width=32, depth=2, heads=4, hidden=128, position_side=7, position_offset=0.0
)


def test_equals_transformers():
    parameters = jax.device_put(dinov2.parameters_from(random_tensors(dinov2.layout(TINY))))
    outputs = jax.jit(partial(dinov2.features, config=TINY))(parameters, FIXTURE["image"])
    assert outputs["pool"].dtype == np.float32
    np.testing.assert_allclose(outputs["pool"], FIXTURE["pool"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "offset"), [("authors", 0.1), ("transformers", 0.0)])
def test_position_embedding_is_resampled(name, offset):
    matrix = dinov2.resampling_matrix(37, 16, offset)
    actual = matrix @ FIXTURE["grid"][..., 0] @ matrix.T
    np.testing.assert_allclose(actual, FIXTURE[f"resampled_{name}"][..., 0], atol=2e-5)


def test_prepare_resizes():
    grey = np.full((2, 10, 30, 3), (10, 128, 255), np.uint8)
    prepared = dinov2.prepare(grey)
    assert prepared.dtype == np.uint8
    assert prepared.shape == (2, 224, 224, 3)
    assert (prepared == (10, 128, 255)).all()
    image = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    np.testing.assert_array_equal(dinov2.prepare(image), image)


def test_antialiased():
    stripes = np.zeros((1, 896, 896, 3), np.uint8)
    stripes[:, :, ::2] = 254
    inner = dinov2.prepare(stripes)[0, :, 8:-8].astype(int)
    assert np.abs(inner - 127).max() <= 2  # a bicubic filter that skips pixels would see stripes


def test_layout_of_the_published_network():
    layout = dinov2.layout()
    assert layout["embeddings.position_embeddings"] == (1, 1370, 1024)
    assert layout["encoder.layer.23.mlp.fc1.weight"] == (4096, 1024)
    # transformers counts 304,368,640 parameters, of which 1,024 are the mask token.
    assert sum(int(np.prod(shape)) for shape in layout.values()) == 304_368_640 - 1024


def test_names_of_the_authors():
    tensors = random_tensors(dinov2.layout(TINY))
    theirs = {
        "cls_token": tensors["embeddings.cls_token"],
        "pos_embed": tensors["embeddings.position_embeddings"],
        "patch_embed.proj.weight": tensors["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": tensors["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": tensors["layernorm.weight"],
        "norm.bias": tensors["layernorm.bias"],
    }
    for i in range(TINY.depth):
        block, layer = f"blocks.{i}", f"encoder.layer.{i}"
        for end in ("weight", "bias"):
            qkv = [tensors[f"{layer}.attention.attention.{p}.{end}"] for p in _QKV]
            theirs[f"{block}.attn.qkv.{end}"] = np.concatenate(qkv)
            theirs[f"{block}.attn.proj.{end}"] = tensors[f"{layer}.attention.output.dense.{end}"]
            for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                theirs[f"{block}.{part}.{end}"] = tensors[f"{layer}.{part}.{end}"]
        for number in (1, 2):
            scale = tensors[f"{layer}.layer_scale{number}.lambda1"]
            theirs[f"{block}.ls{number}.gamma"] = scale
    renamed = dinov2.renamed(theirs)
    assert renamed.keys() == tensors.keys()
    for name, x in tensors.items():
        np.testing.assert_array_equal(renamed[name], x)
    assert dinov2.renamed(tensors) == tensors


_QKV = ("query", "key", "value")
