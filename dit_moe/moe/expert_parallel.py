"""Expert parallelism: tokens travel to the devices that hold their experts, and back.

Runs inside `jax.shard_map` over the whole mesh. Every device owns a share of the tokens, and the
device at place i of the axis "expert" owns experts i E_loc to (i + 1) E_loc of the stack. Of these,
the L devices along the axis "tensor" have a slice of the hidden units each: rows go to the device
at the same place of "tensor", which shows them to the L, and their outputs are summed on the way
back.

Nothing is dropped, and shapes are static, although any number of assignments may want one device:
they travel in rounds. In a round every device sends every other at most `round_rows` rows. Even
load takes one round, or as many as are asked for. If all of a device's assignments are in use, the
worst imbalance takes fewer rounds than there are devices, for each that even load takes. The memory
is that of one. Of several, those of an even load stand one after another in the program, so that
the compiler may let the rows of one travel while the experts compute another.

Without the axis "expert" (of size 1) nothing travels, and rounds serve to bound the memory where a
device's share of the assignments is not known beforehand.

Backward, the same rounds carry tokens and gradients to the experts, which run forward again there.
Storing what a device has received instead would take memory that grows with the imbalance.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from dit_moe.moe.assignments import sort_by_expert
from dit_moe.moe.backends.residuals import keep
from dit_moe.moe.dispatch import BACKENDS, resolve_backend
from dit_moe.moe.exchange import (
    DIRECT,
    EXPERT_AXIS,
    Travel,
    exchange,
    exchange_in_two_steps,
    from_slices,
    to_slices,
)
from dit_moe.moe.experts.bank import ExpertBank
from dit_moe.moe.routing import Routing
from dit_moe.nn.feed_forward import ExpertWeights

Residuals = tuple[jax.Array, jax.Array, jax.Array, ExpertBank, "Plan"]
Gradients = tuple[jax.Array, jax.Array, ExpertWeights]
Carry = TypeVar("Carry")


class Pace(NamedTuple):
    """How rows travel in one direction of differentiation."""

    rows: int
    """Of one round from one device to another."""
    rounds: int
    """How many an even load takes."""
    within: int
    """As of `Travel`."""


SLACK = 1.25
"""Rows of a round over those of an even load. What each extra row costs in memory and padding, it
saves in second rounds. The load of an even router still varies: with 256 assignments from one
device to another the standard deviation is 16, and the largest of many pairs is 4 of them off,
25%."""


def dispatch_to_shards(
    x_TxD: jax.Array,
    routing: Routing,
    experts: ExpertBank,
    num_experts: int,
    usual: int,
    *,
    backend: str = "auto",
    travel: Travel = DIRECT,
) -> jax.Array:
    """`dispatch` of a device's tokens to the experts of all devices along the axis "expert".

    Called by every device, inside `shard_map` over all axes of the mesh.

    Args:
        x_TxD: [T, D] float32 or bfloat16, this device's tokens.
        routing: their assignments. `token` counts from this device's first token, `expert` over
            the experts of all devices.
        experts: this device's, from `own_experts`; any bank where the axis is of size 1.
        num_experts: all experts, without padding. Assignments from there on are left out.
        usual: how many assignments of a device are not left out, on average. It decides how much
            travels in a round, not what is computed.
        backend: that of `dispatch`. With "ragged" and "tokamax" only the rows in use travel, with
            the others whole slots.
        travel: how rows travel. In two steps, whole slots do with every back end.

    Returns:
        [T, D] in the dtype of `x_TxD`. Differentiable in `x_TxD`, `routing.weight` and `experts`.
    """
    backend = resolve_backend(backend)
    axes = jax.sharding.get_abstract_mesh().axis_names
    nowhere = lax.axis_size(EXPERT_AXIS) * experts.num_experts
    expert_A = jnp.where(routing.expert < num_experts, routing.expert, nowhere)
    shards = lax.axis_size(EXPERT_AXIS)

    def pace(rounds: int) -> Pace:
        return Pace(round_rows(usual, len(expert_A), shards, rounds), rounds, travel.within)

    paces = pace(travel.forward), pace(travel.backward)
    return _dispatch(axes, backend, paces, x_TxD, routing.token, expert_A, routing.weight, experts)


def round_rows(usual: int, most: int, shards: int, rounds: int = 1) -> int:
    """Rows of one round from one device to another.

    Args:
        usual: how many assignments of a device are in use, on average.
        most: how many can be.
        shards: how many devices they go to.
        rounds: in how many an even load goes.
    """
    return min(math.ceil(SLACK * usual / shards / rounds), most)


@flax.struct.dataclass
class Plan:
    """What one device sends and receives; S devices along the axis with E experts each, of which L
    have slices."""

    order: jax.Array
    """[A] int32: the assignment at each place when sorted by expert, and so by device."""
    sent: jax.Array
    """[S] int32: how many of them go to each device."""
    received: jax.Array
    """[S] int32: how many come from each."""
    bound: jax.Array
    """[L S, E] int32: what each device sends here, or to another slice of these experts, is sorted
    by expert; where each expert ends."""
    largest: jax.Array
    """int32 scalar, the same on all devices of the mesh: the most that any sends to another."""

    def rounds(self, rows: int) -> jax.Array:
        """How many there are of at most so many rows: int32 scalar."""
        return (self.largest + rows - 1) // rows


def make_plan(expert_A: jax.Array, num_local: int, axes: tuple[str, ...]) -> Plan:
    """Sorts a device's assignments and tells the others how many to expect."""
    shards = lax.axis_size(EXPERT_AXIS)
    order_A, size_E = sort_by_expert(expert_A, shards * num_local)
    size_SxE = size_E.reshape(shards, num_local)
    sent_S = size_SxE.sum(axis=1)
    bound_SxE = jnp.cumsum(lax.all_to_all(size_SxE, EXPERT_AXIS, 0, 0), axis=1)
    return Plan(
        order=order_A,
        sent=sent_S,
        received=bound_SxE[:, -1],
        bound=to_slices(bound_SxE),
        largest=lax.pmax(sent_S.max(), axes),
    )


@flax.struct.dataclass
class _Round:
    """The part of a plan that travels in one round, in S slots of C rows; R = L S arrive, those of
    the other slices among them."""

    assignment: jax.Array
    """[S, C] int32: what is sent; A where a row is unused."""
    expert: jax.Array
    """[R, C] int32: the local expert of each row that arrives; E where it is unused."""
    sent: jax.Array
    """[S] int32: rows in use of each slot that is sent."""
    received: jax.Array
    """[S] int32: the same of the slots that arrive."""
    backend: str = flax.struct.field(pytree_node=False)
    within: int = flax.struct.field(pytree_node=False)

    def there(self, rows_SxC: jax.Array) -> jax.Array:
        """[S, C, ...] to [R, C, ...], of which slot s of S is what device s had in its slot for
        this device, or for the L-th slice of its experts."""
        return to_slices(self._exchange(rows_SxC, self.sent, self.received))

    def back(self, rows_RxC: jax.Array) -> jax.Array:
        """The way back; of what all slices made of a row, the sum."""
        return self._exchange(from_slices(rows_RxC), self.received, self.sent)

    def _exchange(self, rows_SxC: jax.Array, sent_S: jax.Array, received_S: jax.Array) -> jax.Array:
        if 1 < self.within < len(sent_S):
            return exchange_in_two_steps(rows_SxC, self.within)
        return exchange(rows_SxC, sent_S, received_S, self.backend)


def _round(plan: Plan, number: jax.Array, backend: str, pace: Pace) -> _Round:
    rows = pace.rows
    num = plan.order.shape[0]
    first = number * rows
    place_C = first + jnp.arange(rows, dtype=jnp.int32)
    start_S = jnp.cumsum(plan.sent) - plan.sent
    assignment_SxC = plan.order.at[start_S[:, None] + place_C].get(mode="clip")
    return _Round(
        assignment=jnp.where(place_C < plan.sent[:, None], assignment_SxC, num),
        expert=jnp.sum(place_C[:, None] >= plan.bound[:, None], axis=-1, dtype=jnp.int32),
        sent=jnp.clip(plan.sent - first, 0, rows),
        received=jnp.clip(plan.received - first, 0, rows),
        backend=backend,
        within=pace.within,
    )


def _in_rounds(
    plan: Plan, pace: Pace, step: Callable[[jax.Array, Carry], Carry], carry: Carry
) -> Carry:
    """All rounds: those of an even load in line where it takes several, others in a loop."""
    in_line = pace.rounds if pace.rounds > 1 else 0
    for number in range(in_line):
        carry = step(jnp.int32(number), carry)
    return lax.fori_loop(in_line, plan.rounds(pace.rows), step, carry)


def _serve(
    this: _Round, rows_SxCxD: jax.Array, weight_SxC: jax.Array, experts: ExpertBank
) -> jax.Array:
    """The rows that arrived, each through its expert and times its weight: [S, C, D]."""
    rows_RxD = rows_SxCxD.reshape(-1, rows_SxCxD.shape[-1])
    row_R = jnp.arange(len(rows_RxD), dtype=jnp.int32)
    run = BACKENDS[this.backend]
    out_RxD = run(rows_RxD, row_R, this.expert.ravel(), weight_SxC.ravel(), experts)
    return out_RxD.reshape(rows_SxCxD.shape)


def _forward(
    axes: tuple[str, ...],
    backend: str,
    paces: tuple[Pace, Pace],
    x_TxD: jax.Array,
    token_A: jax.Array,
    expert_A: jax.Array,
    weight_A: jax.Array,
    experts: ExpertBank,
) -> tuple[jax.Array, Residuals]:
    pace, plan = paces[0], make_plan(expert_A, experts.num_experts, axes)
    wide = jnp.promote_types(x_TxD.dtype, jnp.float32)

    def step(number: jax.Array, y_TxD: jax.Array) -> jax.Array:
        this = _round(plan, number, backend, pace)
        token_SxC = _take(token_A, this.assignment, len(x_TxD))
        rows_SxCxD = this.there(_take(x_TxD, token_SxC, 0))
        ones_SxC = jnp.ones_like(this.assignment, weight_A.dtype)
        out_SxCxD = this.back(_serve(this, rows_SxCxD, ones_SxC, experts))
        weight_SxC = _take(weight_A, this.assignment, 0)
        return y_TxD.at[token_SxC].add(out_SxCxD * weight_SxC[..., None], mode="drop")

    y_TxD = _in_rounds(plan, pace, step, _zeros(x_TxD, wide, axes))
    y_TxD, plan = keep((y_TxD.astype(x_TxD.dtype), plan))
    return y_TxD, (x_TxD, token_A, weight_A, experts, plan)


def _backward(
    axes: tuple[str, ...],
    backend: str,
    paces: tuple[Pace, Pace],
    residuals: Residuals,
    dy_TxD: jax.Array,
) -> tuple[jax.Array, None, None, jax.Array, ExpertWeights]:
    x_TxD, token_A, weight_A, experts, plan = residuals
    pace = paces[1]
    wide = jnp.promote_types(x_TxD.dtype, jnp.float32)

    def step(number: jax.Array, gradients: Gradients) -> Gradients:
        dx_TxD, dweight_A, dexperts = gradients
        this = _round(plan, number, backend, pace)
        token_SxC = _take(token_A, this.assignment, len(x_TxD))
        rows_SxCxD = this.there(_take(x_TxD, token_SxC, 0))
        # The weight goes along, so that its gradient, which needs the expert's output, is made
        # where the output is.
        weight_SxC = this.there(_take(weight_A, this.assignment, 0))
        _, pull = jax.vjp(partial(_serve, this), rows_SxCxD, weight_SxC, experts)
        drows_SxCxD, dweight_SxC, more = pull(this.there(_take(dy_TxD, token_SxC, 0)))
        dx_TxD = dx_TxD.at[token_SxC].add(this.back(drows_SxCxD), mode="drop")
        dweight_SxC = this.back(dweight_SxC)
        dweight_A = dweight_A.at[this.assignment].set(dweight_SxC, mode="drop")
        return dx_TxD, dweight_A, jax.tree.map(jnp.add, dexperts, more)

    zeros = (
        _zeros(x_TxD, wide, axes),
        _zeros(weight_A, weight_A.dtype, axes),
        jax.tree.map(lambda w: _zeros(w, w.dtype, axes), experts),
    )
    dx_TxD, dweight_A, dexperts = _in_rounds(plan, pace, step, zeros)
    return dx_TxD.astype(x_TxD.dtype), None, None, dweight_A, dexperts


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _dispatch(
    axes: tuple[str, ...],
    backend: str,
    paces: tuple[Pace, Pace],
    x_TxD: jax.Array,
    token_A: jax.Array,
    expert_A: jax.Array,
    weight_A: jax.Array,
    experts: ExpertBank,
) -> jax.Array:
    return _forward(axes, backend, paces, x_TxD, token_A, expert_A, weight_A, experts)[0]


_dispatch.defvjp(_forward, _backward)


def _take(array: jax.Array, index: jax.Array, fill: int) -> jax.Array:
    """array[index], and `fill` where the index is past the end: in the unused rows of a slot."""
    return array.at[index].get(mode="fill", fill_value=fill)


def _zeros(like: jax.Array, dtype: jnp.dtype, axes: tuple[str, ...]) -> jax.Array:
    """Zeros that a loop can add to what differs between devices."""
    return lax.pcast(jnp.zeros(like.shape, dtype), axes, to="varying")
