"""Pairs of Gaussian pixels, of which all is known: what is drawn of either, given the other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.config import ConfigError, GuidanceConfig, RectifiedFlowConfig
from dit_moe.diffusion.integrate import build_objective, start_noise
from dit_moe.diffusion.measurements import Mask
from dit_moe.models.prediction import Prediction
from dit_moe.pairs.denoise import Stream, guided_rows, of_streams
from dit_moe.pairs.sampler import build_pairs_sampler, check_levels
from dit_moe.sampling.request import build_request
from tests.tiny import tiny

# Of the two images' pixels; pixels are independent of each other.
MEAN = np.array([0.4, -0.3])
COVARIANCE = np.array([[0.25, 0.18], [0.18, 0.36]])
CONFIG = tiny(None)
CONFIG = dataclasses.replace(CONFIG, objective=RectifiedFlowConfig())
OBJECTIVE = build_objective(CONFIG.objective)
SHAPE = (8, 8, 1)
N = 40
KEY_N, Y_N = jax.random.split(jax.random.key(0), N), jnp.zeros(N, jnp.int32)
GIVEN = 0.5 * jax.random.normal(jax.random.key(1), (N, *SHAPE))
KNOWN = np.zeros((8, 8, 1), bool)
KNOWN[:, :3] = True


def network(z, t, y, *, joint_scale=1.0):
    """The best there is, for rows of pairs with times of their own; without what joins the images,
    the best of each by itself."""
    covariance = jnp.asarray(np.diag(np.diag(COVARIANCE)) if joint_scale == 0 else COVARIANCE)
    z = z.reshape(-1, 2, *z.shape[1:])
    t = t.reshape(-1, 2)
    h, r = jax.vmap(jnp.diag)(1 - t), jax.vmap(jnp.diag)(t**2)
    gain = covariance @ h @ jnp.linalg.inv(h @ covariance @ h + r)
    expected = jnp.einsum("nij,j->ni", h, MEAN)[:, :, None, None, None]
    clean = MEAN[:, None, None, None] + jnp.einsum("nij,njhwc->nihwc", gain, z - expected)
    t = t[:, :, None, None, None]
    noise = jnp.where(t > 0, (z - (1 - t) * clean) / jnp.where(t > 0, t, 1), 0)
    value = (noise - clean).reshape(-1, *SHAPE)
    return Prediction(value=value.astype(jnp.float32), routing=(), losses={})


def draw(streams, *given, steps=60, **rest):
    request = build_request(
        CONFIG, num_samples=N, integration={"solver": "heun", "steps": steps}, guidance={"scale": 1}
    )
    sampler = build_pairs_sampler(CONFIG, request, streams, bind=lambda _: network, **rest)
    return np.asarray(sampler({}, KEY_N, Y_N, *given))


@pytest.mark.parametrize("asked", [0, 1], ids=["the first", "the second"])
def test_given_the_other_it_is_the_conditional(asked):
    """N(m + S_ab / S_bb (b - m_b), S_aa - S_ab^2 / S_bb): the flow maps noise to it linearly."""
    other = 1 - asked
    streams = [Stream(), Stream()]

    def given(image):
        streams[other] = Stream(level=0.0, given=image)
        return tuple(streams)

    x = draw(given, GIVEN)
    np.testing.assert_array_equal(x[:, other], GIVEN)
    slope = COVARIANCE[0, 1] / COVARIANCE[other, other]
    mean = MEAN[asked] + slope * (GIVEN - MEAN[other])
    deviation = np.sqrt(COVARIANCE[asked, asked] - slope * COVARIANCE[0, 1])
    noise = start_noise(KEY_N, (1, *SHAPE))[:, 0]
    np.testing.assert_allclose(x[:, asked], mean + deviation * noise, atol=5e-3)


def test_both_from_noise_have_their_covariance():
    x = draw(lambda: (Stream(), Stream()))
    pixels = x.swapaxes(0, 1).reshape(2, -1)
    np.testing.assert_allclose(pixels.mean(axis=1), MEAN, atol=0.03)
    np.testing.assert_allclose(np.cov(pixels), COVARIANCE, atol=0.03)


def test_apart_they_are_two_runs():
    x = draw(lambda: (Stream(), Stream()), joint_scale=0.0)
    noise = np.asarray(start_noise(KEY_N, (2, *SHAPE)))
    expected = MEAN[:, None, None, None] + np.sqrt(np.diag(COVARIANCE))[:, None, None, None] * noise
    np.testing.assert_allclose(x, expected, atol=5e-3)


def test_a_rough_second_lies_between_given_and_free():
    """With a level of nearly 0 it stays and the first is as if it were given; with 1 it is free."""

    def rough(level):
        return draw(lambda image: (Stream(), Stream(level=level, given=image)), GIVEN)

    almost, half = rough(1e-4), rough(0.5)
    np.testing.assert_allclose(almost[:, 1], GIVEN, atol=5e-3)
    slope = COVARIANCE[0, 1] / COVARIANCE[1, 1]
    mean = MEAN[0] + slope * (GIVEN - MEAN[1])
    deviation = np.sqrt(COVARIANCE[0, 0] - slope * COVARIANCE[0, 1])
    noise = start_noise(KEY_N, (2, *SHAPE))[:, 0]
    np.testing.assert_allclose(almost[:, 0], mean + deviation * noise, atol=5e-3)
    free = draw(lambda: (Stream(), Stream()))
    # So is the second of level 1, to the bit: what is given is not looked at.
    np.testing.assert_array_equal(rough(1.0), free)

    def likeness(x):
        return np.corrcoef(x[:, 1].ravel(), np.asarray(GIVEN).ravel())[0, 1]

    assert likeness(almost) > 0.99 > likeness(half) > 0.3 > abs(likeness(free))


@pytest.mark.parametrize("painted", [0, 1])
def test_painting_in_either(painted):
    """What is known is kept to the bit; pixels that know nothing of it are drawn as ever."""
    mask = Mask(jnp.asarray(KNOWN))

    def streams(image):
        held = Stream(mask=mask, known=image)
        return (held, Stream()) if painted == 0 else (Stream(), held)

    x, free = draw(streams, GIVEN, steps=20), draw(lambda: (Stream(), Stream()), steps=20)
    np.testing.assert_array_equal(x[:, painted][:, :, :3], GIVEN[:, :, :3])
    np.testing.assert_allclose(x[:, :, :, 3:], free[:, :, :, 3:], atol=1e-5)
    # The other one follows what is known, though less than one that was drawn from it (0.6): on
    # its way the network sees what is known under the noise that the path began with.
    likeness = [
        np.corrcoef(a[:, 1 - painted][:, :, :3].ravel(), GIVEN[:, :, :3].ravel())[0, 1]
        for a in (x, free)
    ]
    assert likeness[0] > 0.2 > 0.1 > abs(likeness[1])


def test_guidance_by_class_and_by_the_condition():
    """strong + (s - 1) (strong - weak) + s_c (strong - apart), of all that a denoiser says."""

    def by_class(z, t, y, *, joint_scale=1.0):
        found = network(z, t, y, joint_scale=joint_scale).value
        shift = jnp.where(y == 10, 0.0, 0.3)[:, None, None, None]
        return Prediction(value=found + shift, routing=(), losses={})

    joined, apart = (
        OBJECTIVE.denoiser(lambda *a, s=scale: by_class(*a, joint_scale=s)) for scale in (1.0, 0.0)
    )
    z = jax.random.normal(jax.random.key(3), (6, *SHAPE))
    t, y = jnp.linspace(0.2, 0.9, 6), jnp.arange(6)
    rows = guided_rows(joined, apart, 10, GuidanceConfig(scale=1.5), 0.7)
    actual = rows(z, t, y)
    strong, weak, alone = joined(z, t, y), joined(z, t, jnp.full(6, 10)), apart(z, t, y)
    for name in ("clean", "noise"):
        a, b, c = (getattr(part, name) for part in (strong, weak, alone))
        np.testing.assert_allclose(
            getattr(actual, name), a + 0.5 * (a - b) + 0.7 * (a - c), atol=1e-5
        )
    plain = guided_rows(joined, apart, 10, GuidanceConfig(scale=1), 0.0)(z, t, y)
    jax.tree.map(np.testing.assert_array_equal, plain, strong)


def test_what_is_told_makes_up_z():
    """On the solver's path, whatever the levels and times of the images."""
    rows = OBJECTIVE.denoiser(network)
    streams = (Stream(), Stream(level=0.6, given=GIVEN))
    z = jax.random.normal(jax.random.key(4), (N, 2, *SHAPE))
    t = jnp.linspace(0.1, 1.0, N)
    found = of_streams(rows, streams)(z, t, Y_N)
    t = t[:, None, None, None, None]
    np.testing.assert_allclose((1 - t) * found.clean + t * found.noise, z, atol=1e-4)


def test_what_pairs_cannot_be_drawn_with():
    request = build_request(CONFIG, num_samples=1, integration={"solver": "euler_maruyama"})
    with pytest.raises(
        ConfigError, match="solver is 'euler_maruyama', which adds noise on its way"
    ):
        check_levels(request, (1.0, 0.5))
    check_levels(request, (1.0, 0.0))
    noisy = build_request(CONFIG, num_samples=1, integration={"solver": "ddim", "eta": 0.5})
    with pytest.raises(ConfigError, match="solver is 'ddim'"):
        check_levels(noisy, (0.5, 1.0))
    other = dataclasses.replace(request, guidance=GuidanceConfig(guide="self_contrast"))
    with pytest.raises(ConfigError, match="guidance is 'self_contrast' for pairs; allowed: 'cfg'"):
        build_pairs_sampler(CONFIG, other, lambda: (Stream(), Stream()))
