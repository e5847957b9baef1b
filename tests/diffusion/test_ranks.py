"""Vectors [N, D] and tokens [N, S, D]: losses, guidance and solvers are what they are on images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.config import DDPMConfig, GuidanceConfig, RectifiedFlowConfig
from dit_moe.diffusion.guidance import against, against_null_label, guide
from dit_moe.diffusion.integrate import build_objective, sample
from dit_moe.diffusion.measurements import steer_by_loss
from dit_moe.diffusion.solvers import step_noise
from dit_moe.models.prediction import Prediction
from tests.diffusion.gaussian import DENOISERS, DEVIATION, MEAN, OBJECTIVES

N = 4
KEY_N, Y_N = jax.random.split(jax.random.key(0), N), jnp.arange(N)
AS_IMAGES = {(6,): (1, 1, 6), (3, 2): (1, 3, 2)}
"""Shapes of one example, and of the same numbers as an image."""
SHAPES = pytest.mark.parametrize("shape", AS_IMAGES)

SOLVERS = {
    "rectified_flow": ("heun", "euler_maruyama", "unipc"),
    "ddpm": ("dopri5", "ancestral"),
}
"""One of each file."""


def alike(actual, images, **tolerance):
    np.testing.assert_allclose(actual, np.reshape(images, actual.shape), **tolerance)


@SHAPES
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_exact_denoiser_leads_to_the_data(name, shape):
    noise = step_noise(KEY_N, 0, shape)
    drawn = sample(
        OBJECTIVES[name], DENOISERS[name], KEY_N, Y_N, shape, "dopri5", 40, tolerance=1e-4
    )
    assert drawn.shape == (N, *shape)
    np.testing.assert_allclose(drawn, MEAN + DEVIATION * noise, atol=5e-3)


def guided(denoiser, weak):
    """By all that guidance has, then by a loss."""
    settings = {"scale": 2.0, "schedule": "linear", "interval": (0.1, 0.9), "rescale": 0.5}
    denoiser = guide(denoiser, against(denoiser, weak), GuidanceConfig(**settings))

    def loss(clean):
        return clean.reshape(N, -1).sum(axis=1)

    return steer_by_loss(denoiser, loss, 0.1)


@SHAPES
@pytest.mark.parametrize("name", OBJECTIVES)
def test_guided_samples(name, shape):
    def weak(z, t, y_N):
        denoised = DENOISERS[name](z, t, y_N)
        return denoised.replace(clean=0.5 * denoised.clean, noise=jnp.tanh(denoised.noise))

    def draw(shape):
        denoiser = guided(DENOISERS[name], weak)
        return [
            sample(OBJECTIVES[name], denoiser, KEY_N, Y_N, shape, solver, 3)
            for solver in SOLVERS[name]
        ]

    # Compiled together: faster.
    both = jax.jit(lambda: (draw(shape), draw(AS_IMAGES[shape])))()
    for solver, drawn, images in zip(SOLVERS[name], *both, strict=True):
        assert drawn.shape == (N, *shape)
        assert np.isfinite(drawn).all(), solver
        alike(drawn, images, rtol=1e-4, atol=1e-5)


@SHAPES
def test_guidance_against_the_null_label_at_times_of_their_own(shape):
    def denoiser(z, t, y_N):
        denoised = DENOISERS["rectified_flow"](z, t, y_N)
        shift = y_N.reshape(-1, *[1] * (z.ndim - 1))
        return denoised.replace(clean=denoised.clean + shift)

    contrast = against_null_label(denoiser, N)
    both = guide(denoiser, contrast, GuidanceConfig(scale=3.0, interval=(0.3, 1.0), rescale=1.0))
    z, t_N = step_noise(KEY_N, 1, shape), jnp.linspace(0.1, 0.9, N)
    actual, images = (both(z.reshape(N, *s), t_N, Y_N) for s in (shape, AS_IMAGES[shape]))
    jax.tree.map(alike, actual, images)


@SHAPES
@pytest.mark.parametrize(
    "config", [RectifiedFlowConfig(time_scale=3.0), DDPMConfig(variance="learned_range")]
)
def test_losses(config, shape):
    objective, learnt = build_objective(config), config.name == "ddpm"

    def network(x, t_N, y_N):
        value = jnp.tanh(x) + 0.01 * t_N.reshape(-1, *[1] * (x.ndim - 1))
        value = jnp.concatenate([value, 0.5 * value], axis=-1) if learnt else value
        return Prediction(value=value, routing=None, losses={})

    x = 0.5 * step_noise(KEY_N, 2, shape)
    (loss, (metrics, _)), (of_images, (expected, _)) = (
        objective.loss(network, KEY_N, x.reshape(N, *s), Y_N) for s in (shape, AS_IMAGES[shape])
    )
    assert np.isfinite(loss)
    np.testing.assert_allclose(loss, of_images, rtol=1e-5)
    assert metrics.keys() == expected.keys() >= {"mse", *(["vlb"] if learnt else [])}
    for name in metrics:
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5)


@SHAPES
def test_noised_data_at_places_of_the_range(shape):
    x, noise = step_noise(KEY_N, 3, shape), step_noise(KEY_N, 4, shape)
    place_N = jnp.array([0.0001, 0.25, 0.5, 0.9999])
    t = place_N.reshape(-1, *[1] * len(shape))
    noisy, time_N = build_objective(RectifiedFlowConfig(time_scale=3.0)).noised(x, place_N, noise)
    np.testing.assert_allclose(noisy, (1 - t) * x + t * noise, rtol=1e-6)
    np.testing.assert_allclose(time_N, 3 * place_N)
    noisy, time_N = build_objective(DDPMConfig()).noised(x, place_N, noise)
    np.testing.assert_array_equal(time_N, [0, 250, 500, 999])
    signal = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[[0, 250, 500, 999]].reshape(t.shape)
    expected = np.sqrt(signal) * x + np.sqrt(1 - signal) * noise
    np.testing.assert_allclose(noisy, expected, rtol=1e-5, atol=1e-6)


def test_places_of_the_steps():
    np.testing.assert_allclose(
        build_objective(RectifiedFlowConfig()).places(4), [1, 0.75, 0.5, 0.25]
    )
    np.testing.assert_allclose(
        build_objective(DDPMConfig()).places(4), [0.751, 0.501, 0.251, 0.001]
    )
