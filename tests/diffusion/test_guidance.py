import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.config import DDPMConfig, GuidanceConfig, RectifiedFlowConfig
from dit_moe.diffusion.denoiser import Denoised
from dit_moe.diffusion.guidance import against, against_null_label, guide, scale_at
from dit_moe.diffusion.integrate import build_objective, sample
from dit_moe.models.prediction import Prediction

NULL = 10
X = jax.random.normal(jax.random.key(0), (3, 2, 2, 4))
T = jnp.array([0.1, 0.5, 0.9])
Y = jnp.array([1, 2, 3])
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(NULL + 1, 2, 2, 4)).astype(np.float32)


def denoiser(z, t, y, shift=0.0):
    """Everything depends on z, time and label; noise and clean make up z."""
    t = jnp.reshape(jnp.broadcast_to(t, y.shape), (-1, 1, 1, 1))
    clean = z * t + jnp.asarray(TABLE)[y] + shift
    return Denoised(clean=clean, noise=(z - (1 - t) * clean) / t, variance=z + clean)


def guided(**settings):
    return guide(denoiser, against_null_label(denoiser, NULL), GuidanceConfig(**settings))


def weights(scale, schedule, interval, t):
    factor = {"constant": 1 + 0 * t, "linear": 2 * (1 - t), "cosine": 1 + np.cos(np.pi * t)}
    return np.where((t >= interval[0]) & (t <= interval[1]), (scale - 1) * factor[schedule], 0)


def test_scale_one_is_the_denoiser_itself():
    assert guided(scale=1.0, interval=(0.2, 0.3), rescale=0.5, schedule="linear") is denoiser


@pytest.mark.parametrize(
    ("scale", "schedule", "interval", "channels"),
    [
        (0.0, "constant", (0, 1), "all"),
        (1.5, "constant", (0, 1), "first_three"),
        (4.0, "linear", (0, 1), "all"),
        (4.0, "cosine", (0.3, 1), "all"),
        (4.0, "constant", (0.3, 0.7), "first_three"),
    ],
)
def test_formula(scale, schedule, interval, channels):
    actual = guided(scale=scale, schedule=schedule, interval=interval, channels=channels)(X, T, Y)
    conditional, unconditional = denoiser(X, T, Y), denoiser(X, T, jnp.full(3, NULL))
    weight = weights(scale, schedule, interval, np.asarray(T, np.float64))[:, None, None, None]
    for name in ("clean", "noise"):
        c, u = (np.asarray(getattr(x, name), np.float64) for x in (conditional, unconditional))
        expected = c + weight * (c - u)
        if channels == "first_three":
            expected[..., 3] = c[..., 3]
        np.testing.assert_allclose(getattr(actual, name), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(actual.variance, conditional.variance)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedules_have_the_weight_of_the_constant_on_average(schedule):
    guidance = GuidanceConfig(scale=3.0, schedule=schedule)
    scale = scale_at(guidance, jnp.linspace(0, 1, 10_001))
    np.testing.assert_allclose(scale[jnp.array([0, -1])], [5, 1], atol=1e-6)
    assert (np.diff(scale) <= 0).all()
    np.testing.assert_allclose(np.mean(scale), 3, rtol=1e-5)


@pytest.mark.parametrize(("channels", "count"), [("all", 4), ("first_three", 3)])
def test_rescaling(channels, count):
    """Lin et al. 2023, eq. 15 and 16, of the velocity."""
    phi = 0.7
    actual = guided(scale=4.0, rescale=phi, channels=channels)(X, T, Y)
    strong = np.asarray(denoiser(X, T, Y).velocity, np.float64)
    plain = np.asarray(guided(scale=4.0, channels=channels)(X, T, Y).velocity, np.float64)
    expected = plain.copy()
    for n in range(3):
        ratio = strong[n, ..., :count].std() / plain[n, ..., :count].std()
        expected[n, ..., :count] *= phi * ratio + 1 - phi
    np.testing.assert_allclose(actual.velocity, expected, rtol=1e-4, atol=1e-5)
    t = T[:, None, None, None]
    np.testing.assert_allclose((1 - t) * actual.clean + t * actual.noise, X, rtol=1e-4, atol=1e-5)


def test_a_flat_prediction_has_no_contrast_to_take_back():
    """An untrained network predicts a velocity of 0."""

    def flat(z, t, y):
        return Denoised(clean=z, noise=z, variance=z)

    actual = guide(flat, against(flat, flat), GuidanceConfig(scale=2.0, rescale=0.5))(X, T, Y)
    np.testing.assert_array_equal(actual.clean, X)


def test_a_network_guided_by_itself_is_the_network():
    both = against(denoiser, functools.partial(denoiser, shift=0.0))
    actual, plain = guide(denoiser, both, GuidanceConfig(scale=3.0))(X, T, Y), denoiser(X, T, Y)
    jax.tree.map(np.testing.assert_array_equal, actual, plain)


def test_a_weaker_network():
    both = against(denoiser, functools.partial(denoiser, shift=0.25))
    actual, plain = guide(denoiser, both, GuidanceConfig(scale=3.0))(X, T, Y), denoiser(X, T, Y)
    np.testing.assert_allclose(actual.clean, plain.clean - 2 * 0.25, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [RectifiedFlowConfig(), DDPMConfig()])
def test_the_second_half_runs_inside_of_the_interval_alone(config):
    """Counts what really runs: sizes of batches, step by step."""
    sizes = []
    steps, interval = 10, (0.25, 0.55)
    objective = build_objective(config)

    def network(z, t, y):
        jax.debug.callback(lambda t: sizes.append(len(t)), t)
        return Prediction(value=0.1 * z, routing=None, losses={})

    plain = objective.denoiser(network)
    solver = {"rectified_flow": "euler", "ddim": "ddim", "ddpm": "ddim"}[config.name]
    key_N, y_N = jax.random.split(jax.random.key(1), 3), jnp.zeros(3, jnp.int32)

    def run(interval):
        sizes.clear()
        settings = GuidanceConfig(scale=2.0, interval=interval)
        denoiser = guide(plain, against_null_label(plain, NULL), settings)
        jax.block_until_ready(
            jax.jit(lambda k: sample(objective, denoiser, k, y_N, (2, 2, 1), solver, steps))(key_N)
        )
        jax.effects_barrier()
        return sizes

    times = objective.times(steps)[:-1]
    inside = (times >= np.float32(interval[0])) & (times <= np.float32(interval[1]))
    assert 0 < inside.sum() < steps
    assert run(interval) == [6 if i else 3 for i in inside]
    assert run((0.0, 1.0)) == [6] * steps


def test_times_of_their_own_are_guided_one_by_one():
    actual = guided(scale=3.0, interval=(0.4, 0.6))(X, T, Y)
    everywhere, plain = guided(scale=3.0)(X, T, Y), denoiser(X, T, Y)
    for name in ("clean", "noise"):
        expected = np.asarray(getattr(plain, name)).copy()
        expected[1] = getattr(everywhere, name)[1]
        np.testing.assert_allclose(getattr(actual, name), expected, rtol=1e-5, atol=1e-6)
