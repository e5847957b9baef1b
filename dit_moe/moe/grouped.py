"""Block-aligned grouped feed-forward for CPU, with a backward pass of its own.

Assignments are sorted by expert, so that every expert owns one run of rows. A run is walked in
blocks of a static number of rows: large ones while they fit, small ones for what is left. How
many blocks an expert gets is decided at run time, so an empty expert costs nothing and no row is
computed twice.

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

Carry = TypeVar("Carry")


@flax.struct.dataclass
class ExpertWeights:
    """The feed-forward weights of E experts: width D, in-projection width G, hidden width F."""

    w_in: jax.Array
    """[E, D, G] float32."""
    w_out: jax.Array
    """[E, F, D] float32."""
    b_in: jax.Array | None = None
    """[E, G] float32."""
    b_out: jax.Array | None = None
    """[E, D] float32."""
    activation: str = flax.struct.field(pytree_node=False, default="swiglu")
    """"swiglu": G = 2 F, the first F columns are the gate. "gelu": G = F, tanh approximation."""


def expert_activation(h_AxG: jax.Array, activation: str) -> jax.Array:
    """The non-linearity between the two projections: [A, G] to [A, F], same dtype.

    Raises:
        ValueError: the activation is unknown.
    """
    if activation == "swiglu":
        gate_AxF, up_AxF = jnp.split(h_AxG, 2, axis=-1)
        return jax.nn.silu(gate_AxF) * up_AxF
    if activation == "gelu":
        return jax.nn.gelu(h_AxG, approximate=True)
    raise ValueError(f"activation is {activation!r}, allowed are 'swiglu' and 'gelu'")


def sort_by_expert(expert_A: jax.Array, num_experts: int) -> tuple[jax.Array, jax.Array]:
    """Orders assignments by expert, stably.

    Args:
        expert_A: [A] int32. Values from `num_experts` on mean "no expert" and are sorted last.

    Returns:
        order [A] int32, the assignment at each sorted place, and size [E] int32, the number of
        assignments of each expert.
    """
    num = expert_A.shape[0]
    expert_A = jnp.minimum(expert_A.astype(jnp.int32), num_experts)
    size_E = jnp.bincount(expert_A, length=num_experts).astype(jnp.int32)
    if (num_experts + 1) * num < 2**31:
        # Sorting one packed key is several times faster than argsort, which moves two arrays.
        packed_A = expert_A * num + jnp.arange(num, dtype=jnp.int32)
        return jnp.sort(packed_A) % num, size_E
    return jnp.argsort(expert_A, stable=True).astype(jnp.int32), size_E


def dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """Matrix product over axis contract[0] of `a` and contract[1] of `b`, summed in >= float32."""
    return lax.dot_general(
        a,
        b,
        (((contract[0],), (contract[1],)), ((), ())),
        preferred_element_type=jnp.promote_types(a.dtype, jnp.float32),
    )


def block_rows(num_assignments: int, num_experts: int) -> tuple[int, ...]:
    """Rows of the blocks, largest first, from the mean number of rows of an expert."""
    mean = num_assignments / num_experts
    return (256, 32) if mean >= 128 else (64, 16)


def grouped_ffn(
    x_TxD: jax.Array,
    token_A: jax.Array,
    expert_A: jax.Array,
    weight_A: jax.Array,
    experts: ExpertWeights,
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
    weight: jax.Array
    order: jax.Array
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
    block: Callable[[jax.Array, int, jax.Array, Carry], Carry],
    rows: tuple[int, ...],
    begin: jax.Array,
    end: jax.Array,
    carry: Carry,
) -> Carry:
    """Runs `block(start, rows, mask, carry)` over the rows begin to end of one expert."""

    def step(size: int, first: jax.Array, i: jax.Array, carry: Carry) -> Carry:
        start = first + i * size
        return block(start, size, start + jnp.arange(size) < end, carry)

    for size, next_size in zip(rows, (*rows[1:], rows[-1]), strict=True):
        # One block that is nearly full beats several smaller ones.
        num = jnp.maximum(end - begin + next_size - 1, 0) // size
        carry = lax.fori_loop(0, num, partial(step, size, begin), carry)
        begin = begin + num * size
    return carry


@jax.custom_vjp
def _grouped_ffn(
    x_TxD: jax.Array,
    token_A: jax.Array,
    expert_A: jax.Array,
    weight_A: jax.Array,
    experts: ExpertWeights,
) -> jax.Array:
    return _forward(x_TxD, token_A, expert_A, weight_A, experts, save=False)[0]


def _forward(x_TxD, token_A, expert_A, weight_A, experts, save):
    num_experts, _, width_in = experts.w_in.shape
    rows = block_rows(token_A.shape[0], num_experts)
    plan = _plan(token_A, expert_A, weight_A, num_experts)
    axes, wide = _varying_axes(x_TxD), jnp.promote_types(x_TxD.dtype, jnp.float32)

    def expert_step(e, carry):
        own = jax.tree.map(lambda w: w[e].astype(x_TxD.dtype), experts)

        def block(start, size, mask, carry):
            y_TxD, h_AxG = carry
            token = lax.dynamic_slice_in_dim(plan.token, start, size)
            weight = lax.dynamic_slice_in_dim(plan.weight, start, size) * mask
            h = dot(x_TxD[token], own.w_in, (1, 0))
            if own.b_in is not None:
                h = h + own.b_in
            h = h.astype(x_TxD.dtype)
            out = dot(expert_activation(h, own.activation), own.w_out, (1, 0))
            if own.b_out is not None:
                out = out + own.b_out
            y_TxD = y_TxD.at[token].add(out * weight[:, None])
            if save:
                h_AxG = lax.dynamic_update_slice_in_dim(h_AxG, h, start, 0)
            return y_TxD, h_AxG

        return _walk(block, rows, plan.bound[e], plan.bound[e + 1], carry)

    y_TxD = _vary(jnp.zeros(x_TxD.shape, wide), axes)
    h_AxG = _vary(jnp.zeros((plan.token.shape[0] if save else 0, width_in), x_TxD.dtype), axes)
    y_TxD, h_AxG = lax.fori_loop(0, num_experts, expert_step, (y_TxD, h_AxG))
    return y_TxD.astype(x_TxD.dtype), (x_TxD, plan, experts, h_AxG)


def _backward(residuals, dy_TxD):
    x_TxD, plan, experts, h_AxG = residuals
    num_experts = experts.w_in.shape[0]
    num = plan.order.shape[0]
    rows = block_rows(num, num_experts)
    axes, dtype = _varying_axes(x_TxD), x_TxD.dtype
    wide = jnp.promote_types(dtype, jnp.float32)

    def zeros(shape):
        return _vary(jnp.zeros(shape, wide), axes)

    def expert_step(e, carry):
        own = jax.tree.map(lambda w: w[e].astype(dtype), experts)

        def block(start, size, mask, carry):
            dx_TxD, dweight_A, dexpert = carry
            token = lax.dynamic_slice_in_dim(plan.token, start, size)
            weight = lax.dynamic_slice_in_dim(plan.weight, start, size)
            weight = (weight * mask)[:, None].astype(wide)
            x, dy = x_TxD[token], dy_TxD[token]
            h = lax.dynamic_slice_in_dim(h_AxG, start, size)
            act, act_vjp = jax.vjp(lambda h: expert_activation(h, own.activation), h)
            dact = dot(dy, own.w_out, (1, 1))
            dweight = jnp.sum(act * dact, axis=1)
            (dh,) = act_vjp((dact * weight).astype(dtype))
            scaled_dy = dy * weight
            if own.b_out is not None:
                dweight = dweight + jnp.sum(dy * own.b_out, axis=1)
            dx_TxD = dx_TxD.at[token].add(dot(dh, own.w_in, (1, 1)))
            dweight_A = lax.dynamic_update_slice_in_dim(dweight_A, dweight, start, 0)
            grad = ExpertWeights(
                w_in=dot(x, dh, (0, 0)),
                w_out=dot(act, scaled_dy.astype(dtype), (0, 0)),
                b_in=None if own.b_in is None else jnp.sum(dh, axis=0, dtype=wide),
                b_out=None if own.b_out is None else jnp.sum(scaled_dy, axis=0),
                activation=own.activation,
            )
            return dx_TxD, dweight_A, jax.tree.map(jnp.add, dexpert, grad)

        dx_TxD, dweight_A, dexperts = carry
        carry = dx_TxD, dweight_A, jax.tree.map(lambda w: zeros(w.shape), own)
        dx_TxD, dweight_A, dexpert = _walk(block, rows, plan.bound[e], plan.bound[e + 1], carry)
        dexperts = jax.tree.map(
            lambda stack, own: lax.dynamic_update_index_in_dim(
                stack, own.astype(stack.dtype), e, 0
            ),
            dexperts,
            dexpert,
        )
        return dx_TxD, dweight_A, dexperts

    dexperts = jax.tree.map(lambda w: _vary(jnp.zeros(w.shape, w.dtype), axes), experts)
    carry = zeros(x_TxD.shape), zeros(plan.token.shape), dexperts
    dx_TxD, dweight_A, dexperts = lax.fori_loop(0, num_experts, expert_step, carry)
    routed_A = jnp.arange(num) < plan.bound[-1]
    dweight_A = jnp.zeros_like(dweight_A[:num]).at[plan.order].set(dweight_A[:num] * routed_A)
    return dx_TxD.astype(dtype), None, None, dweight_A.astype(plan.weight.dtype), dexperts


_grouped_ffn.defvjp(partial(_forward, save=True), _backward)
