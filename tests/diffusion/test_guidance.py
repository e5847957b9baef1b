import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.diffusion.denoiser import Denoised
from dit_moe.diffusion.guidance import classifier_free

NULL = 10
X = jax.random.normal(jax.random.key(0), (3, 2, 2, 4))
T = jnp.array([0.1, 0.5, 0.9])
Y = jnp.array([1, 2, 3])
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(NULL + 1, 8)).astype(np.float32)


def denoiser(z, t, y):
    """Everything depends on z, time and label."""
    t = jnp.reshape(t, (-1, 1, 1, 1))
    table = TABLE[y][:, None, None]
    return Denoised(
        clean=z * t + table[..., :4], noise=z - table[..., 4:], variance=z + table[..., :4]
    )


def test_scale_one_is_the_denoiser_itself():
    assert classifier_free(denoiser, 1.0, NULL) is denoiser


@pytest.mark.parametrize("scale", [0.0, 1.5, 4.0])
@pytest.mark.parametrize(("channels", "guided"), [("all", 4), ("first_three", 3)])
def test_formula(scale, channels, guided):
    actual = classifier_free(denoiser, scale, NULL, channels)(X, T, Y)
    conditional, unconditional = denoiser(X, T, Y), denoiser(X, T, jnp.full(3, NULL))
    for name in ("clean", "noise"):
        c, u = (np.asarray(getattr(x, name)) for x in (conditional, unconditional))
        expected = c.copy()
        expected[..., :guided] = (u + scale * (c - u))[..., :guided]
        np.testing.assert_allclose(getattr(actual, name), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(actual.variance, conditional.variance)


def test_one_pass_of_twice_the_batch():
    sizes = []

    def counted(z, t, y):
        sizes.append(len(z))
        return denoiser(z, t, y)

    classifier_free(counted, 2.0, NULL)(X, T, Y)
    assert sizes == [6]
