"""Inception-v3 beside torch-fidelity's frozen outputs, and its parts beside SciPy."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from eval.features import inception
from eval.features.random_weights import random_tensors

FIXTURE = dict(np.load(Path(__file__).parents[2] / "fixtures" / "inception.npz"))


def relative_error(actual, expected):
    """The largest error, in units of how much the images differ from one another."""
    return np.abs(actual - expected).max() / np.abs(expected - expected.mean(0)).max()


def test_equals_torch_fidelity():
    parameters = jax.device_put(inception.parameters_from(random_tensors(inception.layout())))
    outputs = jax.jit(inception.features)(parameters, FIXTURE["image"])
    assert {name: (x.shape, x.dtype.name) for name, x in outputs.items()} == {
        "pool": ((2, 2048), "float32"),
        "spatial": ((2, 2023), "float32"),
        "logits": ((2, 1008), "float32"),
    }
    for name in outputs:
        assert relative_error(np.asarray(outputs[name]), FIXTURE[name]) < 1e-3, name


@pytest.mark.parametrize("side", [24, 350])
def test_resize_equals_torch_fidelity(side):
    i, j = np.mgrid[:side, : side + 9]
    pattern = ((i * 7 + j * j * 3) % 256).astype(np.uint8)[None, :, :, None]
    resized = inception.resize(jnp.asarray(pattern))
    assert resized.shape == (1, 299, 299, 1)
    np.testing.assert_allclose(
        resized[:, ::6, ::6], FIXTURE[f"resized_{side}"], rtol=1e-5, atol=1e-3
    )


def test_resize_leaves_images_of_299_as_they_are():
    image = np.random.default_rng(0).integers(0, 256, (1, 299, 299, 3), np.uint8)
    np.testing.assert_array_equal(inception.resize(jnp.asarray(image)), image)


class TestPools:
    image = np.random.default_rng(0).normal(size=(9, 7)).astype(np.float32) - 3

    def test_average_leaves_padding_out(self):
        inside = ndimage.uniform_filter(np.ones_like(self.image), 3, mode="constant")
        expected = ndimage.uniform_filter(self.image, 3, mode="constant") / inside
        pooled = inception.average_pool(jnp.asarray(self.image)[None, :, :, None])
        np.testing.assert_allclose(pooled[0, :, :, 0], expected, rtol=1e-5)

    def test_padding_never_wins_the_maximum(self):
        expected = ndimage.maximum_filter(self.image, 3, mode="constant", cval=-np.inf)
        x = jnp.asarray(self.image)[None, :, :, None]
        np.testing.assert_array_equal(inception.max_pool(x, 1, "SAME")[0, :, :, 0], expected)
        strided = expected[1:-1:2, 1:-1:2]
        np.testing.assert_array_equal(inception.max_pool(x, 2, "VALID")[0, :, :, 0], strided)

    def test_projection_may_come_first(self):
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=(2, 5, 5, 6)), jnp.float32)
        conv = inception.Conv(6, 4)
        conv.kernel[...] = jnp.asarray(rng.normal(size=(1, 1, 6, 4)), jnp.float32)
        conv.bias[...] = jnp.asarray(rng.normal(size=4), jnp.float32)
        expected = conv(inception.average_pool(x))
        np.testing.assert_allclose(inception.average_then(conv, x), expected, atol=1e-5)


def test_layout_is_the_published_one():
    layout = inception.layout()
    assert len(layout) == 94 * 5 + 2
    assert layout["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
    assert layout["Mixed_6c.branch7x7_2.conv.weight"] == (160, 160, 1, 7)
    assert layout["Mixed_7c.branch3x3dbl_3b.bn.running_var"] == (384,)
    assert layout["fc.weight"] == (1008, 2048)


def test_batch_norm_is_folded():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 3, 1, 1))
    norm = {name: rng.uniform(0.5, 2, 4) for name in ("weight", "bias", "running_mean")}
    norm["running_var"] = rng.uniform(0.5, 2, 4)
    tensors = {"a.conv.weight": weight, "fc.weight": np.zeros((2, 2))}
    tensors |= {f"a.bn.{name}": x for name, x in norm.items()}
    parameters = inception.parameters_from(tensors)
    x_NxI = rng.normal(size=(5, 3))
    y_NxO = x_NxI @ weight[:, :, 0, 0].T
    expected = (y_NxO - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-3)
    expected = expected * norm["weight"] + norm["bias"]
    actual = x_NxI @ parameters["a.kernel"][0, 0] + parameters["a.bias"]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
