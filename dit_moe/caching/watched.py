"""TeaCache and the first-block cache: a cheap sign tells whether the units are worth computing.

What decides is one number for the whole batch, since a batch is computed or is not: an image may
differ with the others of its batch.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.caching.schedule import Schedule
from dit_moe.config import ConfigError
from dit_moe.config.caching import FirstBlockConfig, TeaCacheConfig
from dit_moe.models.block import Given
from dit_moe.models.stretch import first_input, run_stretch
from dit_moe.models.trunk import Trunk


@flax.struct.dataclass
class Seen:
    """What is kept between evaluations."""

    delta: jax.Array
    """[N, S, D] what the units did when they were last computed."""
    sign: jax.Array
    """[N, S, D] what tells of a change."""
    total: jax.Array
    """float32: the changes since then."""
    full: jax.Array
    """int32: how often they were computed."""


class Watched:
    """A `caching.network.Method`.

    Args:
      settings: TeaCache's, or the first-block cache's.
      rows_E: as of `schedule.full_evaluations`. The first evaluation and the last are computed, and
        one with more rows an image than the one before.
      units: of the network.

    Raises:
      ConfigError: TeaCache is not calibrated, or there is no unit after the first.
    """

    rows_axis = 0
    gates = False
    schedule: Schedule | None = None

    def __init__(self, settings: TeaCacheConfig | FirstBlockConfig, rows_E: np.ndarray, units: int):
        if isinstance(settings, TeaCacheConfig) and not settings.coefficients:
            raise ConfigError(
                "step_cache is 'teacache' without its calibration; allowed: after `python -m "
                "dit_moe.caching --workdir RUN`, which writes it into the run folder"
            )
        self._settings, self._units = settings, units
        self._start = 1 if isinstance(settings, FirstBlockConfig) else 0
        if units <= self._start:
            raise ConfigError(
                f"step_cache is {settings.name!r} with a network of {units} unit; allowed: 2 or "
                "more"
            )
        grown = np.diff(rows_E, prepend=0) > 0
        self._forced_E = grown | (np.arange(len(rows_E)) == len(rows_E) - 1)

    def like(self, trunk: Trunk, x_NxSxD: jax.Array, given: Given) -> Seen:
        """See `Method`."""
        x_NxSxD, _ = run_stretch(trunk, x_NxSxD, given, 0, 1)
        return Seen(x_NxSxD, x_NxSxD, jnp.float32(0), jnp.int32(0))

    def __call__(
        self, trunk: Trunk, x_NxSxD: jax.Array, given: Given, kept: Seen, number: jax.Array
    ) -> tuple[jax.Array, Seen]:
        """See `Method`."""
        before = x_NxSxD
        if self._start:
            x_NxSxD, given = run_stretch(trunk, x_NxSxD, given, 0, self._start)
            sign = x_NxSxD - before
        else:
            sign = first_input(trunk, x_NxSxD, given)
        change = relative_change(sign, kept.sign)
        full, total = decide(
            self._settings, kept.total, change, jnp.asarray(self._forced_E)[number]
        )

        def compute(x_NxSxD: jax.Array, delta: jax.Array) -> tuple[jax.Array, jax.Array]:
            del delta
            after, _ = run_stretch(trunk, x_NxSxD, given, self._start, self._units)
            return after, after - x_NxSxD

        def add(x_NxSxD: jax.Array, delta: jax.Array) -> tuple[jax.Array, jax.Array]:
            return x_NxSxD + delta, delta

        x_NxSxD, delta = jax.lax.cond(full, compute, add, x_NxSxD, kept.delta)
        if self._settings.since_computed:
            sign = jnp.where(full, sign, kept.sign)
        return x_NxSxD, Seen(delta, sign, total, kept.full + full)


def relative_change(now: jax.Array, before: jax.Array) -> jax.Array:
    """sum |now - before| / sum |before| over all axes: float32; 0 where nothing was before."""
    now, before = now.astype(jnp.float32), before.astype(jnp.float32)
    size = jnp.abs(before).sum()
    return jnp.where(size > 0, jnp.abs(now - before).sum() / jnp.where(size > 0, size, 1), 0)


def decide(
    settings: TeaCacheConfig | FirstBlockConfig,
    total: jax.typing.ArrayLike,
    change: jax.typing.ArrayLike,
    forced: jax.typing.ArrayLike,
) -> tuple[jax.Array, jax.Array]:
    """Whether the units are computed, and the sum of changes from there on.

    Args:
      settings: with the threshold.
      total: the sum of changes since they were computed.
      change: of the sign, as of `relative_change`.
      forced: whether they are computed in any case.
    """
    change = jnp.asarray(change)
    if isinstance(settings, TeaCacheConfig):
        # The polynomial is a fit, and may be negative where there is little change.
        expected = jnp.polyval(jnp.asarray(settings.coefficients), change)
        change = total + jnp.maximum(expected, 0)
    full = jnp.asarray(forced) | (change >= settings.threshold)
    kept = jnp.float32(0) if settings.since_computed else jnp.where(full, 0, change)
    return full, jnp.asarray(kept, jnp.float32)
