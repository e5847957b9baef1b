import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.config import SOLVERS
from dit_moe.diffusion.denoiser import broadcast_time
from dit_moe.diffusion.integrate import sample
from dit_moe.diffusion.measurements import (
    BlockMean,
    ChannelMean,
    Mask,
    fit,
    steer_by_loss,
    steer_by_measurement,
)
from dit_moe.diffusion.solvers import euler
from tests.diffusion.gaussian import DENOISERS, DEVIATION, MEAN, OBJECTIVES

gaussian = DENOISERS["rectified_flow"]
KNOWN = np.zeros((4, 4, 1), bool)
KNOWN[:, :2] = True
MEASUREMENTS = {"mask": Mask(jnp.asarray(KNOWN)), "mean": BlockMean(2), "grey": ChannelMean()}
X = jax.random.normal(jax.random.key(0), (5, 4, 4, 3))
Z = jax.random.normal(jax.random.key(1), (5, 4, 4, 3))
KEY_N, Y_N = jax.random.split(jax.random.key(2), 5), jnp.zeros(5, jnp.int32)
TIMES = np.linspace(1, 0, 21, dtype=np.float32)


def matrix(measure, shape):
    """A linear map of images as a matrix, from the outside."""
    size = int(np.prod(shape))
    images = np.eye(size, dtype=np.float32).reshape(size, *shape)
    return np.asarray(measure(images), np.float64).reshape(size, -1).T


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_lift_is_the_pseudo_inverse(name):
    measurement = MEASUREMENTS[name]
    a = matrix(measurement.measure, (4, 4, 3))
    y = measurement.measure(X)
    inverse = np.linalg.pinv(a)
    np.testing.assert_allclose(
        np.asarray(measurement.lift(y)).reshape(5, -1),
        np.asarray(y, np.float64).reshape(5, -1) @ inverse.T,
        atol=1e-5,
    )
    flat = np.asarray(Z, np.float64).reshape(5, -1)
    expected = flat + (np.asarray(y).reshape(5, -1) - flat @ a.T) @ inverse.T
    np.testing.assert_allclose(
        np.asarray(measurement.project(Z, y)).reshape(5, -1), expected, atol=1e-5
    )


@pytest.mark.parametrize("t", [0.7, np.linspace(0.1, 0.9, 5, dtype=np.float32)])
@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_both_parts_still_make_up_z(t, strength):
    measurement, t = MEASUREMENTS["mean"], jnp.asarray(t)
    y = measurement.measure(X)
    steered = steer_by_measurement(gaussian, measurement, y, strength)(Z, t, Y_N)
    plain = gaussian(Z, t, Y_N).clean
    expected = (1 - strength) * measurement.measure(plain) + strength * y
    np.testing.assert_allclose(measurement.measure(steered.clean), expected, atol=1e-5)
    t = broadcast_time(t, Z)
    np.testing.assert_allclose((1 - t) * steered.clean + t * steered.noise, Z, atol=1e-5)


def test_at_time_0_the_noise_stays():
    y = MEASUREMENTS["mask"].measure(X)
    steered = steer_by_measurement(gaussian, MEASUREMENTS["mask"], y)(Z, jnp.float32(0), Y_N)
    np.testing.assert_array_equal(steered.noise, gaussian(Z, jnp.float32(0), Y_N).noise)
    np.testing.assert_array_equal(steered.clean[:, :, :2], X[:, :, :2])


def test_strength_0_is_the_denoiser_itself():
    assert steer_by_measurement(gaussian, MEASUREMENTS["mean"], X, 0) is gaussian
    assert steer_by_loss(gaussian, lambda x: x.sum(axis=(1, 2, 3)), 0) is gaussian


def test_what_is_not_measured_is_drawn_as_ever():
    """Pixels are independent here, so the unknown ones must come out as without steering."""
    y = MEASUREMENTS["mask"].measure(X)
    steered = steer_by_measurement(gaussian, MEASUREMENTS["mask"], y)
    x = euler(steered, Z, KEY_N, Y_N, TIMES)
    plain = euler(gaussian, Z, KEY_N, Y_N, TIMES)
    np.testing.assert_allclose(x[:, :, :2], X[:, :, :2], atol=1e-5)
    np.testing.assert_allclose(x[:, :, 2:], plain[:, :, 2:], atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_comes_near_what_is_measured(solver):
    """The last projection changes little (at t = 0, where Heun asks again, the noise is free)."""
    name = "ddpm" if solver == "ancestral" else "rectified_flow"
    measurement = MEASUREMENTS["mean"]
    y = measurement.measure(X)
    steered = steer_by_measurement(DENOISERS[name], measurement, y)
    x = jax.jit(
        lambda: sample(OBJECTIVES[name], steered, KEY_N, Y_N, (4, 4, 3), solver=solver, steps=20)
    )()
    np.testing.assert_allclose(measurement.measure(x), y, atol=0.05)


def test_steering_by_a_linear_loss_gives_the_posterior():
    """exp(c x) times N(m, s^2) is N(m + c s^2, s^2), and so is what each z is believed to be."""
    c, variance = 1.5, DEVIATION**2
    steered = steer_by_loss(gaussian, lambda x: -c * x.sum(axis=(1, 2, 3)))
    for t in (jnp.float32(0.3), jnp.linspace(0.1, 0.95, 5)):
        denoised, at = steered(Z, t, Y_N), broadcast_time(t, Z)
        mean = MEAN + c * variance
        gain = (1 - at) * variance / ((1 - at) ** 2 * variance + at**2)
        expected = mean + gain * (Z - (1 - at) * mean)
        np.testing.assert_allclose(denoised.clean, expected, atol=1e-4)
        np.testing.assert_allclose((1 - at) * denoised.clean + at * denoised.noise, Z, atol=1e-4)

    times = np.linspace(1, 0, 201, dtype=np.float32)
    x = jax.jit(lambda z: euler(steered, z, KEY_N, Y_N, times))(Z)
    np.testing.assert_allclose(x, MEAN + c * variance + DEVIATION * Z, atol=0.02)


@pytest.mark.parametrize("mean", [-1.0, 0.3, 0.98, 1.0])
def test_an_image_that_fits_is_in_range_and_the_nearest(mean):
    """Also where nearly all of a large block must end at white or black."""
    x = jnp.where(jnp.arange(64).reshape(1, 8, 8, 1) < 3, -1.0, 0.99)
    actual = np.asarray(fit(BlockMean(8), x, jnp.full((1, 1, 1, 1), mean)))
    np.testing.assert_allclose(actual.mean(), mean, atol=1e-6)
    assert np.abs(actual).max() < 1 + 1e-6
    moved = (actual - x)[np.abs(actual) < 1 - 1e-6]
    np.testing.assert_allclose(moved, moved[:1].sum(), atol=1e-5)  # all in range by the same


def test_nothing_is_known_at_the_beginning():
    steered = steer_by_loss(gaussian, lambda x: (x**2).sum(axis=(1, 2, 3)))
    for t in (1.0, 0.995):
        actual, plain = steered(Z, jnp.float32(t), Y_N), gaussian(Z, jnp.float32(t), Y_N)
        jax.tree.map(np.testing.assert_array_equal, actual, plain)
