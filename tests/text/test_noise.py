"""The noise of texts against closed forms and loops in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.config import ConfigError
from dit_moe.text.noise import (
    RATE,
    adapted,
    bin_of,
    posterior,
    remembered,
    sqrt_schedule,
    unseen,
)
from dit_moe.text.sampler import sampling_times

T = 100


def test_the_sqrt_schedule_is_its_closed_form():
    abar, t = sqrt_schedule(T), np.arange(T + 1) / T
    closed = (1 - np.sqrt(t + 1e-4)) / (1 - np.sqrt(1e-4))
    assert abar.shape == (T + 1,)
    np.testing.assert_allclose(abar[:-1], closed[:-1], rtol=1e-5)
    # The last would be below 0: it adds the most that one time may.
    assert abar[-1] == pytest.approx(abar[-2] * 0.001, rel=1e-4)
    assert (np.diff(abar) < 0).all()


def test_the_posterior_is_that_of_bayes():
    """Against the product of the two Gaussians, prior and likelihood, number by number."""
    rng, abar, abar_next = np.random.default_rng(0), np.array([0.3, 0.5]), np.array([0.6, 0.9])
    x, clean = rng.normal(size=(2, 3, 2, 4)).astype(np.float32)
    mean, deviation = posterior(x, clean, jnp.asarray(abar), jnp.asarray(abar_next))
    for s in range(2):
        kept = abar[s] / abar_next[s]
        prior, likelihood = 1 - abar_next[s], (1 - kept) / kept
        variance = 1 / (1 / prior + 1 / likelihood)
        of_prior = np.sqrt(abar_next[s]) * clean[:, s] / prior
        expected = variance * (of_prior + x[:, s] / np.sqrt(kept) / likelihood)
        np.testing.assert_allclose(mean[:, s], expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(deviation[s], np.sqrt(variance), rtol=1e-5)


def test_the_last_step_gives_the_data():
    x, clean = np.random.default_rng(0).normal(size=(2, 3, 2, 4)).astype(np.float32)
    mean, deviation = posterior(x, clean, jnp.array([0.3, 0.5]), jnp.ones(2))
    np.testing.assert_allclose(mean, clean, rtol=1e-6)
    assert (np.asarray(deviation) == 0).all()


def test_times_of_sampling():
    assert sampling_times(100, 4).tolist() == [100, 75, 50, 25, 0]
    assert sampling_times(3, 3).tolist() == [3, 2, 1, 0]
    with pytest.raises(ConfigError, match=r"steps is 4; allowed: 1 to diffusion.times 3"):
        sampling_times(3, 4)


def test_errors_are_remembered_as_by_a_loop():
    rng, bins, length = np.random.default_rng(0), 4, 3
    expected = np.full((bins, length), -1.0)
    error = unseen(bins, length)
    for _ in range(5):
        t, found = rng.integers(1, T + 1, 6), rng.random((6, length)).astype(np.float32)
        own = [int((time - 1) * bins / T) for time in t]
        assert bin_of(jnp.asarray(t), T, bins).tolist() == own
        for b in set(own):
            mean = found[[i for i, o in enumerate(own) if o == b]].mean(axis=0)
            before = expected[b]
            expected[b] = np.where(before < 0, mean, (1 - RATE) * before + RATE * mean)
        error = remembered(error, jnp.asarray(own), jnp.asarray(found))
    np.testing.assert_allclose(error, expected, rtol=1e-5)


def by_hand(abar: np.ndarray, error: np.ndarray) -> np.ndarray:
    """`adapted` of one place, in NumPy and float64."""
    bins, times = len(error), len(abar) - 1
    rising = np.maximum.accumulate(error) + 1e-4 * np.arange(bins)
    slopes = rising[1] - rising[0], rising[-1] - rising[-2]
    knots = [rising[0] - slopes[0] / 2, *rising, rising[-1] + slopes[1] / 2]
    middle = [(b + 0.5) * times / bins + 0.5 for b in range(bins)]
    at = np.interp([1, *middle, times], np.arange(times + 1), abar)
    even = np.linspace(knots[0], knots[-1], times)
    return np.array([abar[0], *np.interp(even, knots, at)])


def test_adapted_noise_is_that_of_numpy_place_by_place():
    abar = np.stack([sqrt_schedule(T)] * 3)
    bins = np.arange(10)
    error = np.stack(
        [np.sqrt(bins + 1), (bins / 9) ** 2, np.array([0, 2, 1, 3.07, 3.07, 4, 5, 6, 7, 9])]
    )
    new = np.asarray(adapted(jnp.asarray(abar), jnp.asarray(error.T)))
    for place in range(3):
        np.testing.assert_allclose(new[place], by_hand(abar[place], error[place]), atol=2e-5)
    assert (np.diff(new, axis=1) <= 0).all()
    np.testing.assert_array_equal(new[:, 0], 1)
    np.testing.assert_allclose(new[:, [1, -1]], abar[:, [1, -1]], atol=1e-5)


def test_an_error_that_grows_evenly_changes_little_and_one_unknown_nothing():
    abar = jnp.asarray(np.stack([sqrt_schedule(T)] * 2))
    even = jnp.asarray(np.stack([np.arange(50) / 50] * 2, axis=1))
    np.testing.assert_allclose(adapted(abar, even), abar, atol=0.03)
    np.testing.assert_array_equal(adapted(abar, even.at[3, 1].set(-1)), abar)


def test_after_it_a_known_error_grows_evenly():
    """Where the error is a function of abar, it is linear in time afterwards."""
    abar = sqrt_schedule(T)

    def error_at(abar):
        return (1 - abar) ** 3

    middle = np.interp((np.arange(50) + 0.5) * 2 + 0.5, np.arange(T + 1), abar)
    known = jnp.asarray(error_at(middle))[:, None]
    new = np.asarray(adapted(jnp.asarray(abar)[None], known))[0]
    grown = error_at(new[1:])
    np.testing.assert_allclose(grown, np.linspace(grown[0], grown[-1], T), atol=0.02)
