"""Some units of a trunk, and whole trunks whose blocks are known: what sampling with a cache runs.

Units are counted through the segments. Everything here slices the parameters of a unit where it
runs, so that nothing of a unit that does not run is read.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.models.block import Given, Outputs
from dit_moe.models.trunk import Previous, Trunk, Unit, fitting, run_unit

Known = tuple[tuple[Outputs, ...], ...]
"""The outputs of every block: of each segment, of each block of its unit, with a leading axis of
the segment's units."""

Carry = TypeVar("Carry")


def run_stretch(
    trunk: Trunk, x_NxSxD: jax.Array, given: Given, start: int, end: int
) -> tuple[jax.Array, Given]:
    """Runs the units from `start` to before `end`.

    Args:
      trunk: whose units.
      x_NxSxD: [N, S, D] tokens before the first of them.
      given: what every block may know; `previous` as the unit before has handed it on.
      start: the first unit.
      end: the unit after the last.

    Returns:
      The tokens after them, and what is given to the next.
    """
    x_NxSxD, given, _ = _run(trunk, x_NxSxD, given, start, end, keep=False)
    return x_NxSxD, given


def run_and_keep(trunk: Trunk, x_NxSxD: jax.Array, given: Given) -> tuple[jax.Array, Known]:
    """Runs all units; the tokens after them, and what every block gave."""
    x_NxSxD, _, known = _run(trunk, x_NxSxD, given, 0, trunk.config.units, keep=True)
    return x_NxSxD, known


def run_known(trunk: Trunk, x_NxSxD: jax.Array, given: Given, known: Known) -> jax.Array:
    """Updates tokens by what every block gave elsewhere, under the gates of what is given."""

    def step(unit: Unit, x_NxSxD: jax.Array, known: tuple[Outputs, ...]) -> tuple[jax.Array, None]:
        for block, outputs in zip(unit.blocks, known, strict=True):
            x_NxSxD = block.with_known(x_NxSxD, given, outputs)
        return x_NxSxD, None

    for number, outputs in enumerate(known):
        units = range(trunk.config.trunk[number].repeats)
        x_NxSxD, _ = _over(trunk.segments[number], units, step, x_NxSxD, outputs)
    return x_NxSxD


def first_input(trunk: Trunk, x_NxSxD: jax.Array, given: Given) -> jax.Array:
    """What the attention of the first block sees: the tokens, modulated, [N, S, D]."""

    def step(unit: Unit, x_NxSxD: jax.Array, _: None) -> tuple[jax.Array, None]:
        return unit.blocks[0].first_input(x_NxSxD, given), None

    return _over(trunk.segments[0], range(1), step, x_NxSxD, None)[0]


def _run(
    trunk: Trunk, x_NxSxD: jax.Array, given: Given, start: int, end: int, *, keep: bool
) -> tuple[jax.Array, Given, Known]:
    def step(
        unit: Unit, carry: tuple[jax.Array, Previous], _: None
    ) -> tuple[tuple[jax.Array, Previous], tuple[Outputs, ...] | None]:
        carry, _routing, outputs = run_unit(unit, carry, given)
        return carry, outputs if keep else None

    previous, found = given.previous, []
    for number, units in _pieces(trunk, start, end):
        segment = trunk.config.trunk[number]
        if units.start == 0:
            previous = fitting(previous, segment, x_NxSxD.shape[0] * x_NxSxD.shape[1])
        (x_NxSxD, previous), outputs = _over(
            trunk.segments[number], units, step, (x_NxSxD, previous), None
        )
        found.append(outputs)
    return x_NxSxD, dataclasses.replace(given, previous=previous), tuple(found)


def _pieces(trunk: Trunk, start: int, end: int) -> Iterator[tuple[int, range]]:
    """The segments in which units lie, and which of their own units these are."""
    before = 0
    for number, segment in enumerate(trunk.config.trunk):
        units = range(max(start - before, 0), min(end - before, segment.repeats))
        if units:
            yield number, units
        before += segment.repeats


def _over(
    stack: Unit,
    units: range,
    step: Callable[[Unit, Carry, Any], tuple[Carry, Any]],
    carry: Carry,
    rows: Any,
) -> tuple[Carry, Any]:
    """step(unit, carry, its row) for each of these units of a segment."""
    graphdef, parameters = nnx.split(stack)

    def run(carry: Carry, at: tuple[jax.Array, Any]) -> tuple[Carry, Any]:
        index, row = at
        own = jax.tree.map(lambda p: jax.lax.dynamic_index_in_dim(p, index, 0, False), parameters)
        return step(nnx.merge(graphdef, own), carry, row)

    return jax.lax.scan(run, carry, (jnp.arange(units.start, units.stop), rows))
