"""The experts that a device has, from the parts in which the parameters are stored."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from dit_moe.moe.exchange import EXPERT_AXIS, TENSOR_AXIS, expert_shards, expert_slices
from dit_moe.nn.feed_forward import ExpertWeights

FSDP_AXIS = "fsdp"


def expert_specs(experts: ExpertWeights) -> ExpertWeights:
    """How `shard_map` should hand all experts to `own_experts`: as `devices/mesh.py` stores them.

    Split over the experts where their number allows it, otherwise over the width alone.
    """
    if experts.w_in.shape[0] % expert_shards() == 0:
        first, width = EXPERT_AXIS, (FSDP_AXIS, TENSOR_AXIS)
    else:
        first, width = None, (EXPERT_AXIS, FSDP_AXIS, TENSOR_AXIS)
    return dataclasses.replace(
        experts,
        w_in=PartitionSpec(first, width),
        w_out=PartitionSpec(first, None, width),
        b_in=PartitionSpec(first),
        b_out=PartitionSpec(first, width),
    )


def own_experts(experts: ExpertWeights, num_experts: int) -> ExpertWeights:
    """This device's experts, or slices of them, from its part by `expert_specs`; inside
    `shard_map`.

    No device ever holds all experts. Backward, gradients are scattered over "fsdp" and summed over
    "data".

    Returns:
        [E_loc, ...], of the hidden units the L-th part. Experts of zeros, to which nothing is
        routed, fill the last device up. The biases of the output are on the first of L alone.
    """
    matrices = experts.kind.in_matrices
    shards, axes = expert_shards(), jax.sharding.get_abstract_mesh().axis_names
    missing = -num_experts % shards

    def fill(w: jax.Array) -> jax.Array:
        return jnp.pad(w, [(0, missing)] + [(0, 0)] * (w.ndim - 1))

    def vary(w: jax.Array, *differs: str) -> jax.Array:
        return lax.pcast(w, tuple(axis for axis in axes if axis not in differs), to="varying")

    def own(w: jax.Array, width: int) -> jax.Array:
        w = lax.all_gather(w, FSDP_AXIS, axis=width, tiled=True)
        return lax.all_to_all(fill(w), EXPERT_AXIS, 0, width, tiled=True) if missing else w

    def stored(w: jax.Array) -> jax.Array:
        return vary(w, EXPERT_AXIS, FSDP_AXIS, TENSOR_AXIS)

    def own_b_in(b_in: jax.Array) -> jax.Array:
        """Its axis is no width of the model, so that only experts split it, or nothing."""
        if not missing:
            return _slice_of_hidden(vary(b_in, EXPERT_AXIS), matrices)
        num_local = (num_experts + missing) // shards
        first = lax.axis_index(EXPERT_AXIS) * num_local
        b_in = lax.dynamic_slice_in_dim(fill(vary(b_in)), first, num_local)
        return _slice_of_hidden(b_in, matrices)

    def own_b_out(b_out: jax.Array) -> jax.Array:
        b_out = own(_whole_over_slices(stored(b_out)), 1)
        return b_out if expert_slices() == 1 else b_out * (lax.axis_index(TENSOR_AXIS) == 0)

    return dataclasses.replace(
        experts,
        w_in=own(_swap_for_slice(stored(experts.w_in), 2, 1, matrices), 1),
        w_out=own(_swap_for_slice(stored(experts.w_out), 1, 2, 1), 2),
        b_in=None if experts.b_in is None else own_b_in(experts.b_in),
        b_out=None if experts.b_out is None else own_b_out(experts.b_out),
    )


def _swap_for_slice(w: jax.Array, hidden: int, width: int, matrices: int) -> jax.Array:
    """From a part of the width to a slice of the hidden units of each of so many matrices that lie
    side by side; the arguments are the axes of the two."""
    slices = expert_slices()
    if slices == 1:
        return w
    before, units, after = w.shape[:hidden], w.shape[hidden] // matrices, w.shape[hidden + 1 :]
    w = w.reshape(*before, matrices, slices, units // slices, *after)
    to = width if width < hidden else width + 2
    w = lax.all_to_all(w, TENSOR_AXIS, hidden + 1, to, tiled=True)
    return w.reshape(*w.shape[:hidden], matrices * units // slices, *w.shape[hidden + 3 :])


def _slice_of_hidden(b_ExG: jax.Array, matrices: int) -> jax.Array:
    """The same of a bias, which has no width."""
    slices = expert_slices()
    if slices == 1:
        return b_ExG
    b_ExMxLxU = b_ExG.reshape(len(b_ExG), matrices, slices, -1)
    own = lax.dynamic_index_in_dim(b_ExMxLxU, lax.axis_index(TENSOR_AXIS), 2, keepdims=False)
    return own.reshape(len(b_ExG), -1)


def _whole_over_slices(b_ExD: jax.Array) -> jax.Array:
    if expert_slices() == 1:
        return b_ExD
    return lax.all_gather(b_ExD, TENSOR_AXIS, axis=1, tiled=True)
