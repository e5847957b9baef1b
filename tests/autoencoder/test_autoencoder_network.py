"""The network against diffusers' outputs, and its layers against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_moe.autoencoder.config import AutoencoderConfig
from dit_moe.autoencoder.convolution import convolve, winograd
from dit_moe.autoencoder.layers import group_norm
from dit_moe.autoencoder.loading import load
from dit_moe.autoencoder.network import Autoencoder, Moments
from tests.autoencoder import autoencoder_fixture

TINY = AutoencoderConfig(block_out_channels=(4, 4), layers_per_block=1, norm_num_groups=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return autoencoder_fixture.write_folder(tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture(scope="module")
def arrays():
    return autoencoder_fixture.arrays()


class TestAgainstDiffusers:
    def test_encode(self, folder, arrays):
        model = load(str(folder)).model
        moments = jax.jit(lambda model, x: model.encode(x))(model, arrays["image"])
        np.testing.assert_allclose(moments.mean, arrays["mean"], atol=2e-5)
        np.testing.assert_allclose(moments.log_variance, arrays["log_variance"], atol=2e-5)

    def test_decode(self, folder, arrays):
        model = load(str(folder)).model
        image = jax.jit(lambda model, z: model.decode(z))(model, arrays["latent"])
        np.testing.assert_allclose(image, arrays["decoded"], atol=2e-5)

    def test_bfloat16(self, folder, arrays):
        model = load(str(folder), dtype="bfloat16").model
        leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
        moments, image = jax.jit(lambda model, x, z: (model.encode(x), model.decode(z)))(
            model, arrays["image"], arrays["latent"]
        )
        for value, name in [
            (moments.mean, "mean"),
            (moments.log_variance, "log_variance"),
            (image, "decoded"),
        ]:
            expected = arrays[name]
            error = np.abs(value - expected).max() / expected.std()
            assert value.dtype == jnp.float32
            assert 1e-4 < error < 0.1, name  # rounded, but not wrong


def test_log_variance_is_clipped():
    model = Autoencoder(TINY, jnp.dtype("float32"), nnx.Rngs(0))
    assert model.quant_conv is not None
    assert model.quant_conv.bias is not None
    model.quant_conv.bias[...] = jnp.array([100.0, -100, 0, 0, 100, -100, 0, 0])
    moments = jax.jit(lambda model, x: model.encode(x))(model, jnp.zeros((1, 2, 2, 3)))
    assert moments.mean[0, 0, 0, 0] > 90
    np.testing.assert_array_equal(moments.log_variance[0, 0, 0, :2], [20, -30])


def test_sample_of_moments():
    mean, log_variance = np.array([3.0, -1.0]), np.array([2.0, -3.0])
    moments = Moments(*(jnp.broadcast_to(x, (1, 200, 200, 2)) for x in (mean, log_variance)))
    latent = moments.sample(jax.random.key(0))
    std = np.exp(log_variance / 2)
    np.testing.assert_allclose((latent.mean((0, 1, 2)) - mean) / std, 0, atol=0.02)
    np.testing.assert_allclose(latent.std((0, 1, 2)) / std, 1, atol=0.02)


@pytest.mark.parametrize("shape", [(1, 3, 2, 3), (1, 2, 3, 3), (1, 2, 2, 4)])
def test_images_that_do_not_fit(shape):
    model = Autoencoder(TINY, jnp.dtype("float32"), nnx.Rngs(0))
    with pytest.raises(ValueError, match="allowed: multiples of 2 with 3 channels"):
        model.encode(jnp.zeros(shape))


def test_norm_far_from_zero():
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 4)).astype(np.float32)
    norm = group_norm(4, 1, nnx.Rngs(0))
    moved = norm(jnp.asarray(x + np.float32(2048)))
    np.testing.assert_allclose(moved, (x - x.mean()) / x.std(), atol=2e-3)


class TestConvolution:
    @staticmethod
    def direct(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    @pytest.mark.parametrize("shape", [(1, 2, 2, 1), (2, 2, 8, 5), (3, 6, 4, 2)])
    def test_winograd_equals_direct(self, shape):
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=shape), jnp.float32)
        kernel = jnp.asarray(rng.normal(size=(3, 3, shape[-1], 7)), jnp.float32)
        np.testing.assert_allclose(winograd(x, kernel), self.direct(x, kernel), atol=2e-5)

    def test_rounding_with_many_channels(self):
        rng = np.random.default_rng(0)
        x, kernel = rng.normal(size=(1, 8, 8, 512)), rng.normal(size=(3, 3, 512, 4)) / 512**0.5
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        expected = sum(
            padded[:, i : i + 8, j : j + 8] @ kernel[i, j] for i in range(3) for j in range(3)
        )
        y = winograd(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32))
        np.testing.assert_allclose(y, expected, atol=3e-5)

    @pytest.mark.parametrize(
        ("size", "channels", "dtype", "by_winograd"),
        [
            (4, 256, "float32", True),
            (4, 128, "float32", False),
            (5, 256, "float32", False),
            (4, 256, "bfloat16", False),
        ],
    )
    def test_choice_on_cpu(self, size, channels, dtype, by_winograd):
        x = jnp.zeros((1, size, size, channels), dtype)
        kernel = jnp.zeros((3, 3, channels, channels), dtype)
        settings = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        program = jax.make_jaxpr(lambda x, k: convolve(x, k, (1, 1), "SAME", **settings))(x, kernel)
        assert ("conv_general_dilated" not in str(program)) == by_winograd
