"""Delta: what a range of units adds to the tokens, kept while the range is left out."""

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.caching.schedule import Schedule, full_evaluations
from dit_moe.config import require
from dit_moe.config.caching import DeltaConfig
from dit_moe.models.block import Given
from dit_moe.models.stretch import run_stretch
from dit_moe.models.trunk import Previous, Trunk


@flax.struct.dataclass
class Residual:
    """What a range of units did."""

    delta: jax.Array
    """[N, S, D] the tokens after it, less those before."""
    handed: Previous
    """What its last router has handed on; not of a range at the end."""


class Delta:
    """A `caching.network.Method`: the last units are left out at first, the first ones later.

    Args:
      settings: of the method.
      rows_E: as of `full_evaluations`.
      units: of the network.

    Raises:
      ConfigError: there are fewer evaluations than `every`.
    """

    rows_axis = 0
    gates = False

    def __init__(self, settings: DeltaConfig, rows_E: np.ndarray, units: int):
        number = len(rows_E)
        require(
            settings.every <= number,
            f"step_cache.every is {settings.every} with {number} evaluations; allowed: 1 to "
            f"{number}",
        )
        length = max(round(settings.share * units), 1)
        self._ranges = ((units - length, units), (0, length))
        full_E = full_evaluations(settings, rows_E)
        # A range changes with an evaluation that computes what is left out from there on.
        last_E = np.maximum.accumulate(np.where(full_E, np.arange(number), 0))
        front_E = last_E >= settings.switch * number
        computed = np.ones((number, units), bool)
        for which, (start, end) in enumerate(self._ranges):
            computed[np.ix_(~full_E & (front_E == which), range(start, end))] = False
        self.schedule = Schedule(computed)
        self._kind_E = 2 * front_E + full_E

    def like(self, trunk: Trunk, x_NxSxD: jax.Array, given: Given) -> Residual:
        """See `Method`."""
        x_NxSxD, given = run_stretch(trunk, x_NxSxD, given, *self._ranges[1])
        return Residual(x_NxSxD, given.previous)

    def __call__(
        self, trunk: Trunk, x_NxSxD: jax.Array, given: Given, kept: Residual, number: jax.Array
    ) -> tuple[jax.Array, Residual]:
        """See `Method`."""

        def running(front: bool, full: bool) -> Callable[..., tuple[jax.Array, Residual]]:
            start, end = self._ranges[front]

            def run(x_NxSxD: jax.Array, kept: Residual) -> tuple[jax.Array, Residual]:
                x_NxSxD, here = run_stretch(trunk, x_NxSxD, given, 0, start)
                if full:
                    x_NxSxD, kept, here = run_range(trunk, x_NxSxD, here, start, end, kept)
                else:
                    x_NxSxD, here = x_NxSxD + kept.delta, after_range(here, kept)
                return run_stretch(trunk, x_NxSxD, here, end, trunk.config.units)[0], kept

            return run

        kinds = [running(front, full) for front in (False, True) for full in (False, True)]
        return jax.lax.switch(jnp.asarray(self._kind_E)[number], kinds, x_NxSxD, kept)


def run_range(
    trunk: Trunk, x_NxSxD: jax.Array, given: Given, start: int, end: int, kept: Residual
) -> tuple[jax.Array, Residual, Given]:
    """Runs a range of units; the tokens after it, what it did, and what is given to the next."""
    before = x_NxSxD
    x_NxSxD, given = run_stretch(trunk, x_NxSxD, given, start, end)
    handed = given.previous if end < trunk.config.units else kept.handed
    return x_NxSxD, Residual(x_NxSxD - before, handed), given


def after_range(given: Given, kept: Residual) -> Given:
    """What is given to the unit after a range that was left out."""
    return dataclasses.replace(given, previous=kept.handed)
