import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.config import SOLVERS, ConfigError, SolverConfig
from dit_moe.diffusion.denoiser import Denoised, broadcast_time
from dit_moe.diffusion.integrate import sample
from dit_moe.diffusion.measurements import (
    BlockMean,
    ChannelMean,
    Luma,
    Mask,
    Weighted,
    fit,
    next_noise_factor,
    steer_by_loss,
    steer_by_losses,
    steer_by_measurement,
)
from dit_moe.diffusion.solvers import euler
from dit_moe.diffusion.solvers.stochastic import ddim, noised_again
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


def test_luma_is_exact_and_keeps_the_colours():
    """YCbCr with Y replaced: what one channel has above another stays."""
    luma, y = Luma(), jax.random.uniform(jax.random.key(5), (5, 4, 4, 1))
    np.testing.assert_allclose(
        luma.measure(X)[..., 0], X @ np.array([0.299, 0.587, 0.114]), atol=1e-6
    )
    moved = luma.project(X, y)
    np.testing.assert_allclose(luma.measure(moved), y, atol=1e-6)
    np.testing.assert_allclose(jnp.diff(moved, axis=-1), jnp.diff(X, axis=-1), atol=1e-6)
    np.testing.assert_allclose(luma.measure(luma.lift(y)), y, atol=1e-6)
    fitted = fit(luma, X, 2 * y - 1)
    np.testing.assert_allclose(luma.measure(fitted), 2 * y - 1, atol=1e-5)


def test_a_sum_of_losses_each_in_its_window():
    def linear(c):
        return lambda x: -c * x.sum(axis=(1, 2, 3))

    losses = [Weighted(linear(2.0), 0.5), Weighted(linear(1.0), 3.0, (0.0, 0.4))]
    steered = steer_by_losses(gaussian, losses)
    for t, c in ((0.3, 4.0), (0.6, 1.0)):
        actual = steered(Z, jnp.float32(t), Y_N)
        expected = steer_by_loss(gaussian, linear(c))(Z, jnp.float32(t), Y_N)
        np.testing.assert_allclose(actual.clean, expected.clean, atol=1e-5)
    # Each example by its own time.
    t_N = jnp.array([0.3, 0.6, 0.3, 0.6, 0.3])
    both = steered(Z, t_N, Y_N)
    for t, rows in ((0.3, slice(0, None, 2)), (0.6, slice(1, None, 2))):
        alone = steered(Z, jnp.float32(t), Y_N)
        np.testing.assert_allclose(both.clean[rows], alone.clean[rows], atol=1e-5)


def test_losses_that_do_not_count_leave_every_bit():
    loss = Weighted(lambda x: (x**2).sum(axis=(1, 2, 3)), 0.0)
    assert steer_by_losses(gaussian, [loss]) is gaussian
    assert steer_by_losses(gaussian, []) is gaussian
    late = Weighted(loss.loss, 1.0, (0.0, 0.4))
    t = jnp.float32(0.5)
    actual, plain = steer_by_losses(gaussian, [late])(Z, t, Y_N), gaussian(Z, t, Y_N)
    jax.tree.map(np.testing.assert_array_equal, actual, plain)


def test_the_scale_of_the_paper():
    """sqrt(1 - abar') of the next time, of the gradient by x_t = z / sqrt((1 - t)^2 + t^2)."""
    times = np.array([1.0, 0.8, 0.5, 0.0], np.float32)
    factor = next_noise_factor(times)
    level = 0.5 / np.hypot(0.5, 0.5)
    assert factor(jnp.float32(0.8)) == pytest.approx(level * np.hypot(0.2, 0.8), rel=1e-5)
    np.testing.assert_allclose(factor(jnp.array([1.0, 0.5])), [0, 0])
    steered = steer_by_losses(gaussian, [Weighted(lambda x: x.sum(axis=(1, 2, 3)))], factor)
    t = jnp.float32(0.8)
    gain = 0.2 * DEVIATION**2 / (0.2**2 * DEVIATION**2 + 0.8**2)  # of the predicted image, by z
    moved = steered(Z, t, Y_N).clean - gaussian(Z, t, Y_N).clean
    np.testing.assert_allclose(moved, -factor(t) * gain * jnp.ones_like(Z), rtol=1e-3)


def test_noise_again_is_that_of_the_path():
    """z at a time, noised back, has the distribution that the path has at the earlier one."""
    t, before = jnp.float32(0.4), jnp.float32(0.7)
    kept = noised_again(jnp.float32(1), t, before, jnp.float32(0))
    added = noised_again(jnp.float32(0), t, before, jnp.float32(1))
    assert kept * (1 - t) == pytest.approx(1 - before)  # of the image
    assert (kept * t) ** 2 + added**2 == pytest.approx(before**2)  # of the noise
    assert noised_again(jnp.float32(1), t, t, jnp.float32(1)) == pytest.approx(1)


def drawn(denoiser, repeats, shape, number, steps=150):
    """By DDPM's chain with the smaller variance, which draws a little too narrow with few steps."""
    times = np.linspace(1, 0, steps + 1, dtype=np.float32)
    key_N, y_N = jax.random.split(jax.random.key(7), number), jnp.zeros(number, jnp.int32)
    z = jax.random.normal(jax.random.key(8), (number, *shape))
    return jax.jit(lambda z: ddim(1.0, repeats)(denoiser, z, key_N, y_N, times))(z)


def test_steps_done_again_change_no_distribution():
    once, often = (drawn(gaussian, repeats, (4, 4, 3), 200) for repeats in (1, 4))
    for x in (once, often):
        np.testing.assert_allclose(x.mean(), MEAN, atol=0.02)
        np.testing.assert_allclose(x.std(), DEVIATION, atol=0.025)
    assert not np.allclose(once, often)


def test_repeats_bring_what_is_unknown_to_the_posterior():
    """Two pixels that depend on each other, of which one is known: a step alone leaves the other
    too near to what it would be without."""
    mean, covariance = jnp.array([0.2, -0.1]), jnp.array([[0.3, 0.24], [0.24, 0.3]])

    def denoiser(z, t, y_N):
        h = 1 - t
        gain = h * covariance @ jnp.linalg.inv(h**2 * covariance + t**2 * jnp.eye(2))
        clean = mean + (z - h * mean) @ gain.T
        noise = jnp.where(t > 0, (z - h * clean) / jnp.where(t > 0, t, 1), 0)
        return Denoised(clean=clean, noise=noise, variance=z[..., :0])

    known = jnp.full((600, 1, 1, 2), 1.0)
    mask = Mask(jnp.array([[[True, False]]]))
    steered = steer_by_measurement(denoiser, mask, mask.measure(known))
    posterior = -0.1 + 0.24 / 0.3 * (1.0 - 0.2)
    found = [drawn(steered, repeats, (1, 1, 2), 600) for repeats in (1, 20)]
    for x in found:
        np.testing.assert_array_equal(x[..., 0], 1.0)
    once, often = (float(x[..., 1].mean()) for x in found)
    assert abs(often - posterior) < 0.05
    assert abs(once - posterior) > 2 * abs(often - posterior)
    deviation = (0.3 - 0.24**2 / 0.3) ** 0.5
    np.testing.assert_allclose(found[1][..., 1].std(), deviation, atol=0.05)


def test_one_turn_is_the_solver_itself():
    def samples(**options):
        return sample(
            OBJECTIVES["rectified_flow"],
            gaussian,
            KEY_N,
            Y_N,
            (4, 4, 3),
            solver="ddim",
            steps=3,
            eta=1.0,
            **options,
        )

    np.testing.assert_array_equal(samples(repeats=1), samples())
    assert not np.allclose(samples(repeats=2), samples())
    with pytest.raises(ConfigError, match="repeats is 0; allowed: 1 to 1000"):
        samples(repeats=0)
    with pytest.raises(ConfigError, match="repeats is 2 with solver 'euler'; allowed: only with"):
        SolverConfig("euler", 3, repeats=2).resolve(OBJECTIVES["rectified_flow"].config)
