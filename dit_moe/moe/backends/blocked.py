"""Block-aligned grouped feed-forward for CPU, with a backward pass of its own.

Assignments are sorted by expert, so that every expert owns one run of rows. A run is walked in
blocks of a static number of rows: the largest while they fit, smaller ones for what is left. How
many blocks of each an expert gets is decided at run time, so that little is padded and an expert
without tokens costs next to nothing.

Why a backward pass of its own: autodiff through a loop over blocks adds each block's weight
gradient into the whole stack of experts. Here an expert's gradient is summed while its blocks are
walked and written once.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from dit_moe.moe.assignments import sort_by_expert
from dit_moe.moe.backends.residuals import keep
from dit_moe.moe.experts.bank import ExpertBank
from dit_moe.nn.feed_forward import ExpertWeights
from dit_moe.nn.linear import dot

Carry = TypeVar("Carry")


BLOCK_ROWS = (512, 128, 64, 32)


def block_rows(num_assignments: int, num_experts: int) -> tuple[int, ...]:
    """Rows of the blocks, largest first, from the mean number of rows of an expert.

    Large blocks run at the matmul peak and add their weight gradients less often; small ones pad
    less, and 32 rows still reach about two thirds of the peak. None but the smallest two is larger
    than twice the load of an average expert: each size is compiled.
    """
    mean = num_assignments / num_experts
    return tuple(rows for rows in BLOCK_ROWS if rows <= max(2 * mean, 64))


def grouped_ffn(
    x_TxD: jax.Array,
    token_A: jax.Array,
    expert_A: jax.Array,
    weight_A: jax.Array,
    experts: ExpertBank,
) -> jax.Array:
    """sum over assignments of weight * expert(x[token]) added at token; see `dispatch`."""
    args = (x_TxD, token_A, expert_A, weight_A, experts)
    # Under shard_map replicated arguments meet sharded ones. Marking all of them as varying over
    # the same axes lets the loops carry one type, and the transpose sums their gradients.
    axes = frozenset[str]().union(*map(_varying_axes, jax.tree.leaves(args)))
    return _grouped_ffn(*jax.tree.map(lambda leaf: _vary(leaf, axes), args))


def _varying_axes(array: jax.Array) -> frozenset[str]:
    """The mesh axes over which an array differs, where shard_map tracks them."""
    kind = jax.typeof(array)
    return kind.vma if hasattr(kind, "vma") else kind.mat.varying  # JAX 0.10 moved it


def _vary(array: jax.Array, axes: frozenset[str]) -> jax.Array:
    missing = tuple(axes - _varying_axes(array))
    return lax.pcast(array, missing, to="varying") if missing else array


@flax.struct.dataclass
class _Plan:
    """Assignments in the order of their experts, padded so that the last block may run over."""

    token: jax.Array
    """[A + B] int32, B the rows of the largest block."""
    weight: jax.Array
    """[A + B]."""
    order: jax.Array
    """[A] int32: the assignment at each sorted place."""
    bound: jax.Array
    """[E + 1] int32: expert e owns the sorted rows bound[e] to bound[e + 1]."""


def _plan(token_A: jax.Array, expert_A: jax.Array, weight_A: jax.Array, num_experts: int) -> _Plan:
    order_A, size_E = sort_by_expert(expert_A, num_experts)
    pad = (0, block_rows(token_A.shape[0], num_experts)[0])
    return _Plan(
        token=jnp.pad(token_A[order_A], pad),
        weight=jnp.pad(weight_A[order_A], pad),
        order=order_A,
        bound=jnp.pad(jnp.cumsum(size_E), (1, 0)),
    )


def _walk(
    block: Callable[[jax.Array, jax.Array, Carry], Carry],
    rows: tuple[int, ...],
    begin: jax.Array,
    end: jax.Array,
    carry: Carry,
) -> Carry:
    """Runs `block(start, mask_B, carry)` over the sorted rows begin to end of one expert.

    The last block may reach into the rows of the next experts, where its mask is 0. What it
    writes there by place is overwritten when those experts are walked, later.
    """

    def step(size: int, first: jax.Array, i: jax.Array, carry: Carry) -> Carry:
        start = first + i * size
        return block(start, start + jnp.arange(size) < end, carry)

    for size, smaller in zip(rows, (*rows[1:], rows[-1]), strict=True):
        # A rest that would fill all but one of the smaller blocks in this one takes this one.
        count = jnp.maximum(end - begin + smaller - 1, 0) // size
        carry = lax.fori_loop(0, count, partial(step, size, begin), carry)
        begin = begin + count * size
    return carry


def _rows(array: jax.Array, start: jax.Array, mask_B: jax.Array) -> jax.Array:
    return lax.dynamic_slice_in_dim(array, start, mask_B.shape[0])


def _write(array: jax.Array, rows: jax.Array, start: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(array, rows, start, 0)


Residuals = tuple[jax.Array, _Plan, ExpertBank, jax.Array]
ForwardCarry = tuple[jax.Array, jax.Array]
BackwardCarry = tuple[jax.Array, jax.Array, ExpertWeights]


def _forward(
    x_TxD: jax.Array,
    token_A: jax.Array,
    expert_A: jax.Array,
    weight_A: jax.Array,
    experts: ExpertBank,
    save: bool,
) -> tuple[jax.Array, Residuals]:
    num_experts, dtype = experts.num_experts, x_TxD.dtype
    width_in = jax.eval_shape(lambda: experts.expert(0, dtype)).w_in.shape[-1]
    rows = block_rows(token_A.shape[0], num_experts)
    plan = _plan(token_A, expert_A, weight_A, num_experts)
    axes = _varying_axes(x_TxD)
    wide = jnp.promote_types(dtype, jnp.float32)

    def expert_step(e: jax.Array, carry: ForwardCarry) -> ForwardCarry:
        own = experts.expert(e, dtype)

        def block(start: jax.Array, mask_B: jax.Array, carry: ForwardCarry) -> ForwardCarry:
            y_TxD, h_AxG = carry
            token_B = _rows(plan.token, start, mask_B)
            weight_B = _rows(plan.weight, start, mask_B) * mask_B
            h_BxG = dot(x_TxD[token_B], own.w_in, (1,), (0,))
            if own.b_in is not None:
                h_BxG = h_BxG + own.b_in
            h_BxG = h_BxG.astype(dtype)
            out_BxD = dot(own.kind.activation(h_BxG), own.w_out, (1,), (0,))
            if own.b_out is not None:
                out_BxD = out_BxD + own.b_out
            y_TxD = y_TxD.at[token_B].add(out_BxD * weight_B[:, None])
            return y_TxD, _write(h_AxG, h_BxG, start) if save else h_AxG

        return _walk(block, rows, plan.bound[e], plan.bound[e + 1], carry)

    y_TxD = _vary(jnp.zeros(x_TxD.shape, wide), axes)
    # Kept for the backward pass: computing it again costs 2 of 9 matmuls, keeping it only traffic.
    h_AxG = _vary(jnp.zeros((plan.token.shape[0] if save else 0, width_in), dtype), axes)
    if save:
        y_TxD, h_AxG = lax.fori_loop(0, num_experts, expert_step, (y_TxD, h_AxG))
    else:
        # Experts without tokens are not asked for: their bank may have to read them.
        used_E = plan.bound[1:] > plan.bound[:-1]
        (own_E,) = jnp.nonzero(used_E, size=num_experts)
        y_TxD, h_AxG = lax.fori_loop(
            0, used_E.sum(), lambda i, carry: expert_step(own_E[i], carry), (y_TxD, h_AxG)
        )
    y_TxD, plan, h_AxG = keep((y_TxD.astype(dtype), plan, h_AxG))
    return y_TxD, (x_TxD, plan, experts, h_AxG)


def _backward(
    residuals: Residuals, dy_TxD: jax.Array
) -> tuple[jax.Array, None, None, jax.Array, ExpertWeights]:
    x_TxD, plan, experts, h_AxG = residuals
    if not isinstance(experts, ExpertWeights):
        raise TypeError(f"{type(experts).__name__} is a bank of experts that cannot be trained")
    num, num_experts = plan.order.shape[0], experts.num_experts
    rows = block_rows(num, num_experts)
    axes, dtype = _varying_axes(x_TxD), x_TxD.dtype
    wide = jnp.promote_types(dtype, jnp.float32)

    def zeros(shape: tuple[int, ...], dtype: jnp.dtype = wide) -> jax.Array:
        return _vary(jnp.zeros(shape, dtype), axes)

    def expert_step(e: jax.Array, carry: BackwardCarry) -> BackwardCarry:
        own = experts.expert(e, dtype)

        def block(start: jax.Array, mask_B: jax.Array, carry: BackwardCarry) -> BackwardCarry:
            dx_TxD, dweight_A, down = carry
            token_B = _rows(plan.token, start, mask_B)
            weight_Bx1 = (_rows(plan.weight, start, mask_B) * mask_B)[:, None].astype(wide)
            x_BxD, dy_BxD = x_TxD[token_B], dy_TxD[token_B]
            act_BxF, pull = jax.vjp(own.kind.activation, _rows(h_AxG, start, mask_B))
            # The gradient of the weight is <dy, out> = <dy w_out^T, act> + <dy, b_out>: with the
            # weight applied after this product, `out` need not be computed again.
            dact_BxF = dot(dy_BxD, own.w_out, (1,), (1,))
            dweight_B = jnp.sum(act_BxF * dact_BxF, axis=1)
            if own.b_out is not None:
                dweight_B = dweight_B + jnp.sum(dy_BxD * own.b_out, axis=1, dtype=wide)
            (dh_BxG,) = pull((dact_BxF * weight_Bx1).astype(dtype))
            dout_BxD = dy_BxD * weight_Bx1
            block_grads = ExpertWeights(
                w_in=dot(x_BxD, dh_BxG, (0,), (0,)),
                w_out=dot(act_BxF, dout_BxD.astype(dtype), (0,), (0,)),
                b_in=None if own.b_in is None else jnp.sum(dh_BxG, axis=0, dtype=wide),
                b_out=None if own.b_out is None else jnp.sum(dout_BxD, axis=0),
                activation=own.activation,
            )
            dx_TxD = dx_TxD.at[token_B].add(dot(dh_BxG, own.w_in, (1,), (1,)))
            dweight_A = _write(dweight_A, dweight_B, start)
            return dx_TxD, dweight_A, jax.tree.map(jnp.add, down, block_grads)

        dx_TxD, dweight_A, dexperts = carry
        carry = dx_TxD, dweight_A, jax.tree.map(lambda w: zeros(w.shape), own)
        dx_TxD, dweight_A, down = _walk(block, rows, plan.bound[e], plan.bound[e + 1], carry)

        def write(stack: jax.Array, grad: jax.Array) -> jax.Array:
            # Unlike .at[e].set this does not read the old values, which it would for bounds.
            return lax.dynamic_update_index_in_dim(stack, grad.astype(stack.dtype), e, 0)

        return dx_TxD, dweight_A, jax.tree.map(write, dexperts, down)

    dexperts = jax.tree.map(lambda w: zeros(w.shape, w.dtype), experts)
    carry = zeros(x_TxD.shape), zeros(plan.token.shape), dexperts
    dx_TxD, dweight_A, dexperts = lax.fori_loop(0, num_experts, expert_step, carry)
    # Rows of no expert were at most written by a block that ran over.
    dweight_A = jnp.where(jnp.arange(num) < plan.bound[-1], dweight_A[:num], 0)
    dweight_A = jnp.zeros_like(dweight_A).at[plan.order].set(dweight_A, unique_indices=True)
    return dx_TxD.astype(dtype), None, None, dweight_A.astype(plan.weight.dtype), dexperts


@jax.custom_vjp
def _grouped_ffn(
    x_TxD: jax.Array,
    token_A: jax.Array,
    expert_A: jax.Array,
    weight_A: jax.Array,
    experts: ExpertBank,
) -> jax.Array:
    return _forward(x_TxD, token_A, expert_A, weight_A, experts, save=False)[0]


_grouped_ffn.defvjp(partial(_forward, save=True), _backward)
