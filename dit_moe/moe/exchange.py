"""How rows get from every device of the axis "expert" to every other, and back; and from one device
to those that hold the other slices of its experts, along the axis "tensor"."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

EXPERT_AXIS, TENSOR_AXIS = "expert", "tensor"


class Travel(NamedTuple):
    """How rows travel; none of it changes what is computed."""

    forward: int = 1
    """How many rounds an even load takes."""
    backward: int = 1
    within: int = 1
    """Neighbours along the axis that share a host: rows go to the place of their device within the
    own host first, then between hosts, if the axis has several hosts; 1: directly."""


DIRECT = Travel()


def expert_shards() -> int:
    """Over how many devices the current mesh splits the experts; 1 without a mesh or the axis."""
    return jax.sharding.get_abstract_mesh().shape.get(EXPERT_AXIS, 1)


def expert_slices() -> int:
    """Over how many devices the current mesh splits each expert; 1 without a mesh or the axis."""
    return jax.sharding.get_abstract_mesh().shape.get(TENSOR_AXIS, 1)


def to_slices(rows_SxC: jax.Array) -> jax.Array:
    """What this device and its neighbours along "tensor", L of them, have: [L S, C, ...]."""
    if expert_slices() == 1:
        return rows_SxC
    return lax.all_gather(rows_SxC, TENSOR_AXIS, tiled=True)


def from_slices(rows_RxC: jax.Array) -> jax.Array:
    """The sums over these devices of what they made of this one's rows: [L S, C, ...] to
    [S, C, ...]."""
    if expert_slices() == 1:
        return rows_RxC
    return lax.psum_scatter(rows_RxC, TENSOR_AXIS, tiled=True)


def exchange_in_two_steps(rows_SxC: jax.Array, within: int) -> jax.Array:
    """One all-to-all inside of every host, in which a device gets what its neighbours have for its
    place in any host, and one between devices at the same place. Slots are as of a direct one."""
    shards, *rest = rows_SxC.shape
    hosts = shards // within
    inside = [[host * within + place for place in range(within)] for host in range(hosts)]
    between = [list(same_place) for same_place in zip(*inside, strict=True)]
    rows_HxWxC = rows_SxC.reshape(hosts, within, *rest)
    rows_HxWxC = lax.all_to_all(rows_HxWxC, EXPERT_AXIS, 1, 1, axis_index_groups=inside)
    rows_HxWxC = lax.all_to_all(rows_HxWxC, EXPERT_AXIS, 0, 0, axis_index_groups=between)
    return rows_HxWxC.reshape(rows_SxC.shape)


def exchange(
    rows_SxC: jax.Array, sent_S: jax.Array, received_S: jax.Array, backend: str
) -> jax.Array:
    """What every device got from each, for the rows [S, C, ...] that it has for each of S devices.

    Args:
      rows_SxC: as many slots for every device; of some, only the first are in use.
      sent_S: int32, how many are in use.
      received_S: int32, how many of the result will be.
      backend: of dispatch; those for accelerators send what is in use alone.
    """
    if len(sent_S) == 1:
        return rows_SxC
    if backend not in ("ragged", "tokamax"):
        return lax.all_to_all(rows_SxC, EXPERT_AXIS, 0, 0)
    slots, rows = rows_SxC.shape[:2]
    flat = rows_SxC.reshape(slots * rows, *rows_SxC.shape[2:])
    start_S = jnp.arange(slots, dtype=jnp.int32) * rows
    mine_S = jnp.full_like(start_S, lax.axis_index(EXPERT_AXIS) * rows)
    return lax.ragged_all_to_all(
        flat, jnp.zeros_like(flat), start_S, sent_S, mine_S, received_S, axis_name=EXPERT_AXIS
    ).reshape(rows_SxC.shape)
