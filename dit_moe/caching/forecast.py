"""FORA and TaylorSeer: what attention and feed-forward of every block gave, forecast.

Kept are d_0, the outputs of the last evaluation that was computed, and the differences

    d_{i+1} = (d_i - d_i of the one computed before) / their distance in evaluations;

x evaluations later sum_i d_i x^i / i! stands in for the outputs. Distances are counted in
evaluations rather than in times, which `heun` has twice.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.caching.schedule import Schedule, full_evaluations
from dit_moe.config import ConfigError, require
from dit_moe.config.caching import PeriodicSettings, TaylorSeerConfig
from dit_moe.models.block import Given
from dit_moe.models.stretch import Known, run_and_keep, run_known
from dit_moe.models.trunk import Trunk

Terms = tuple[Known, ...]
"""d_0 to the order."""


class Forecast:
    """A `caching.network.Method`.

    Args:
      settings: of FORA, which is order 0, or of TaylorSeer.
      rows_E: as of `full_evaluations`.
      units: of the network.

    Raises:
      ConfigError: too few evaluations are computed for such an order, or there are too few.
    """

    rows_axis = 1
    gates = True

    def __init__(self, settings: PeriodicSettings, rows_E: np.ndarray, units: int):
        self._order = settings.order if isinstance(settings, TaylorSeerConfig) else 0
        require(
            settings.every <= len(rows_E),
            f"step_cache.every is {settings.every} with {len(rows_E)} evaluations; allowed: 1 to "
            f"{len(rows_E)}",
        )
        full_E = full_evaluations(settings, rows_E)
        most = max(int(full_E.sum()) - 1, 0)
        if self._order > most:
            raise ConfigError(
                f"step_cache.order is {self._order}, which needs {self._order + 1} evaluations "
                f"that are computed, but of {len(full_E)} with every {settings.every} there "
                f"{'is 1' if most == 0 else f'are {most + 1}'}; allowed: 0 to {most}, or a smaller "
                "every or more steps"
            )
        self.schedule = Schedule(np.repeat(full_E[:, None], units, axis=1))
        self._factor_ExO, self._distance_E = series(full_E, rows_E, self._order)

    def like(self, trunk: Trunk, x_NxSxD: jax.Array, given: Given) -> Terms:
        """See `Method`."""
        return (run_and_keep(trunk, x_NxSxD, given)[1],) * (self._order + 1)

    def __call__(
        self, trunk: Trunk, x_NxSxD: jax.Array, given: Given, kept: Terms, number: jax.Array
    ) -> tuple[jax.Array, Terms]:
        """See `Method`."""
        factor_O = jnp.asarray(self._factor_ExO)[number]
        distance = jnp.asarray(self._distance_E)[number]

        def compute(x_NxSxD: jax.Array, kept: Terms) -> tuple[jax.Array, Terms]:
            x_NxSxD, known = run_and_keep(trunk, x_NxSxD, given)
            return x_NxSxD, differences(known, kept, distance)

        def forecast(x_NxSxD: jax.Array, kept: Terms) -> tuple[jax.Array, Terms]:
            return run_known(trunk, x_NxSxD, given, taylor(kept, factor_O)), kept

        full = jnp.asarray(self.schedule.full)[number]
        return jax.lax.cond(full, compute, forecast, x_NxSxD, kept)


def series(full_E: np.ndarray, rows_E: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
    """What the series is computed with at each evaluation.

    Args:
      full_E: which are computed.
      rows_E: as of `full_evaluations`; more of them begin a new series.
      order: the highest derivative.

    Returns:
      The factors of d_0 to d_order, 0 where too few evaluations were computed to know a
      difference: [E, order + 1] float32. And the distance [E] float32 of an evaluation that is
      computed from the one computed before.
    """
    factor_ExO = np.zeros((len(full_E), order + 1), np.float32)
    distance_E = np.ones(len(full_E), np.float32)
    last, rows, known = 0, 0, 0
    for number, (full, now) in enumerate(zip(full_E.tolist(), rows_E.tolist(), strict=True)):
        ahead = number - last
        if full:
            known = 1 if now > rows else known + 1
            distance_E[number] = max(ahead, 1)
            last, rows = number, now
        else:
            powers = [ahead**i / math.factorial(i) for i in range(min(known, order + 1))]
            factor_ExO[number, : len(powers)] = powers
    return factor_ExO, distance_E


def differences(known: Known, terms: Terms, distance: jax.Array) -> Terms:
    """The terms after an evaluation that was computed, from those before it."""
    new = [known]
    for old in terms[:-1]:
        new.append(
            jax.tree.map(lambda a, b: (a - b) / jnp.asarray(distance, a.dtype), new[-1], old)
        )
    return tuple(new)


def taylor(terms: Terms, factor_O: jax.Array) -> Known:
    """The sum of the series; of order 0, d_0 to the bit."""

    def total(first: jax.Array, *others: jax.Array) -> jax.Array:
        for factor, term in zip(factor_O[1:], others, strict=True):
            first = first + factor.astype(term.dtype) * term
        return first

    return jax.tree.map(total, *terms)
