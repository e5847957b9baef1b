"""Where in time the steps of a solver lie.

A grid is [steps + 1] float32, strictly descending to 0. All times but the 0 are within the
objective's `time_range`.
"""

import numpy as np

from dit_moe.diffusion.objective import Objective

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0
"""The values of Karras et al. 2022 (EDM), table 1."""


def time_grid(
    objective: Objective, name: str, steps: int, shift: float | None = None
) -> np.ndarray:
    """The grid of a name in `config.TIME_GRIDS`.

    Args:
      objective: whose times.
      name: "uniform" and "quadratic": the objective's own (`times`, `quadratic_times`). "karras",
        "shifted": below.
      steps: 1 or more; under DDPM at most its sampled timesteps.
      shift: of the shifted grid.
    """
    match name:
        case "uniform":
            return objective.times(steps)
        case "quadratic":
            return objective.quadratic_times(steps)
        case "karras":
            return karras(objective, steps)
    assert name == "shifted"
    assert shift is not None
    return shifted(objective, steps, shift)


def karras(objective: Objective, steps: int) -> np.ndarray:
    """Even in sigma^(1/7) with sigma = t / (1 - t), from 80 to 0.002, then 0 (EDM, eq. 5).

    Both ends are within the objective's time range.
    """
    low, high = objective.time_range
    first = min(SIGMA_MAX, high / (1 - high)) if high < 1 else SIGMA_MAX
    last = max(SIGMA_MIN, low / (1 - low))
    sigma = np.linspace(first ** (1 / RHO), last ** (1 / RHO), steps) ** RHO
    return _to_zero(objective, sigma / (1 + sigma))


def shifted(objective: Objective, steps: int, shift: float) -> np.ndarray:
    """t -> s t / (1 + (s - 1) t) of even flow times, over the whole time range.

    A shift s above 1 gives more steps to noise (Esser et al. 2024, eq. 23). It stands in the place
    of the objective's own shift.
    """
    low, high = objective.time_range
    first, last = (t / (shift - (shift - 1) * t) for t in (high, low))  # the inverse map
    even = np.linspace(first, last, steps + (low == 0))
    return _to_zero(objective, shift * even / (1 + (shift - 1) * even))


def _to_zero(objective: Objective, t: np.ndarray) -> np.ndarray:
    """The times within the objective's time range, ending at 0."""
    t = np.clip(t.astype(np.float32), *objective.time_range)
    return t if t[-1] == 0 else np.append(t, np.float32(0))
