import itertools

import numpy as np
import pytest

from dit_moe.config import TIME_GRIDS, DDPMConfig, RectifiedFlowConfig
from dit_moe.diffusion.integrate import build_objective
from dit_moe.diffusion.time_grids import time_grid

FLOW = build_objective(RectifiedFlowConfig())
DDPM = build_objective(DDPMConfig())


@pytest.mark.parametrize(
    "config",
    [
        RectifiedFlowConfig(),
        RectifiedFlowConfig(shift=3.0),
        DDPMConfig(),
        DDPMConfig(betas="cosine"),
        DDPMConfig(timesteps=50),
    ],
)
def test_every_grid_descends_to_zero_within_the_trained_range(config):
    objective = build_objective(config)
    low, high = objective.time_range
    for name, steps in itertools.product(TIME_GRIDS, (1, 2, 3, 10, 50)):
        times = time_grid(objective, name, steps, shift=2.0)
        assert times.dtype == np.float32
        assert times.shape == (steps + 1,)
        assert times[-1] == 0, name
        assert (np.diff(times) < 0).all(), (name, steps)
        assert low <= times[-2], name
        assert times[0] <= high, name


def test_uniform():
    np.testing.assert_allclose(time_grid(FLOW, "uniform", 4), [1, 0.75, 0.5, 0.25, 0])
    shifted = build_objective(RectifiedFlowConfig(shift=3.0))
    np.testing.assert_allclose(time_grid(shifted, "uniform", 2), [1, 0.75, 0])
    np.testing.assert_array_equal(
        time_grid(DDPM, "uniform", 4)[:-1], DDPM.path_times()[[750, 500, 250, 0]]
    )


def test_quadratic():
    np.testing.assert_allclose(time_grid(FLOW, "quadratic", 4), [1, 9 / 16, 1 / 4, 1 / 16, 0])
    np.testing.assert_array_equal(
        time_grid(DDPM, "quadratic", 4)[:-1], DDPM.path_times()[[999, 444, 111, 0]]
    )
    # As many steps as timesteps: all of them, once.
    np.testing.assert_array_equal(time_grid(DDPM, "quadratic", 1000)[:-1], DDPM.path_times()[::-1])


def test_karras():
    """EDM, eq. 5, with sigma_max 80, sigma_min 0.002 and rho 7."""
    i = np.arange(18)
    sigma = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    times = time_grid(FLOW, "karras", 18).astype(np.float64)[:-1]
    np.testing.assert_allclose(times / (1 - times), sigma, rtol=1e-5)
    times = time_grid(DDPM, "karras", 18).astype(np.float64)[:-1]
    beta = np.linspace(1e-4, 0.02, 1000)
    np.testing.assert_allclose((times / (1 - times))[0], 80, rtol=1e-4)
    np.testing.assert_allclose((times / (1 - times))[-1], np.sqrt(beta[0] / (1 - beta[0])), 1e-4)


def test_shifted():
    even = np.linspace(1, 0, 9)
    np.testing.assert_allclose(
        time_grid(FLOW, "shifted", 8, 3.0), 3 * even / (1 + 2 * even), rtol=1e-6
    )
    # In place of the objective's own shift, not on top of it.
    other = build_objective(RectifiedFlowConfig(shift=2.0))
    np.testing.assert_array_equal(
        time_grid(other, "shifted", 8, 3.0), time_grid(FLOW, "shifted", 8, 3.0)
    )
    times = time_grid(DDPM, "shifted", 8, 3.0)[:-1].astype(np.float64)
    even = times / (3 - 2 * times)
    np.testing.assert_allclose(np.diff(even), np.diff(even).mean(), rtol=1e-4)
    np.testing.assert_array_equal(times[[0, -1]].astype(np.float32), DDPM.time_range[::-1])
