import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.diffusion.guidance import classifier_free
from dit_moe.nn.prediction import Prediction

NULL = 10
X = jax.random.normal(jax.random.key(0), (3, 2, 2, 4))
T = jnp.array([0.1, 0.5, 0.9])
Y = jnp.array([1, 2, 3])
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(NULL + 1, 8)).astype(np.float32)


def network(x, t, y):
    """Eight channels: four of the mean, four of the variance."""
    value = jnp.concatenate([x, x], axis=-1) * t[:, None, None, None] + TABLE[y][:, None, None]
    return Prediction(value=value, routing=None, losses={})


def test_scale_one_is_the_network_itself():
    assert classifier_free(network, 1.0, NULL) is network


@pytest.mark.parametrize("scale", [0.0, 1.5, 4.0])
@pytest.mark.parametrize(("channels", "guided"), [("all", 4), ("first_three", 3)])
def test_formula(scale, channels, guided):
    value = np.asarray(classifier_free(network, scale, NULL, channels)(X, T, Y).value)
    conditional = np.asarray(network(X, T, Y).value)
    unconditional = np.asarray(network(X, T, jnp.full(3, NULL)).value)
    expected = conditional.copy()
    expected[..., :guided] = (unconditional + scale * (conditional - unconditional))[..., :guided]
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)
    if scale == 0:
        np.testing.assert_allclose(value[..., :guided], unconditional[..., :guided], rtol=1e-6)


def test_one_pass_of_twice_the_batch():
    sizes = []

    def counted(x, t, y):
        sizes.append(len(x))
        return network(x, t, y)

    classifier_free(counted, 2.0, NULL)(X, T, Y)
    assert sizes == [6]
