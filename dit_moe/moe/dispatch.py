"""Dispatch of a mixture-of-experts layer: every assignment through its expert, none dropped.

One function, four back ends with one meaning:

    reference  every expert on every token, masked; what the others are tested against
    blocked    block-aligned matmuls with a backward pass of their own (`grouped.py`); for CPU
    ragged     `jax.lax.ragged_dot`; for TPU, where XLA skips what is masked
    tokamax    the same product by the kernels of tokamax; for GPU, where XLA skips nothing
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jax import lax

from dit_moe.moe.backends.blocked import (
    ExpertWeights,
    expert_activation,
    grouped_ffn,
    keep,
    sort_by_expert,
)
from dit_moe.moe.routing import Routing

__all__ = ["BACKENDS", "ExpertWeights", "dispatch", "expert_activation"]


def dispatch(
    x_TxD: jax.Array, routing: Routing, experts: ExpertWeights, *, backend: str = "auto"
) -> jax.Array:
    """Sends each assignment's token through its expert and adds the weighted results.

    y[t] = sum over assignments a with token[a] = t of weight[a] * expert[a](x[t])

    Differentiable in `x_TxD`, `routing.weight` and `experts`.

    Args:
        x_TxD: [T, D] float32 or bfloat16, the tokens.
        routing: A assignments, A static. An assignment whose expert is E or more is left out (and
            costs nothing in the blocked back end). Experts must not be negative, and every token
            index must be valid, even where the weight is 0.
        experts: float32 weights of E experts; cast to the dtype of `x_TxD` for the matmuls, which
            accumulate in float32, as does the sum over assignments.
        backend: "reference", "blocked", "ragged", "tokamax" (needs the package), or "auto", see
            `resolve_backend`.

    Returns:
        [T, D] in the dtype of `x_TxD`.

    Raises:
        ValueError: the back end or the activation is unknown.
    """
    backend = resolve_backend(backend)
    if backend not in BACKENDS:
        allowed = ", ".join(["auto", *BACKENDS])
        raise ValueError(f"backend is {backend!r}, allowed are {allowed}")
    return BACKENDS[backend](x_TxD, routing.token, routing.expert, routing.weight, experts)


def resolve_backend(backend: str) -> str:
    """What "auto" means on this platform; other names as they are.

    "ragged" on TPU, "tokamax" on GPU where it is installed, otherwise "blocked".
    """
    if backend != "auto":
        return backend
    match jax.default_backend():
        case "tpu":
            return "ragged"
        case "gpu" if importlib.util.find_spec("tokamax"):
            return "tokamax"
    return "blocked"


def _reference(
    x_TxD: jax.Array,
    token_A: jax.Array,
    expert_A: jax.Array,
    weight_A: jax.Array,
    experts: ExpertWeights,
) -> jax.Array:
    dtype, wide = x_TxD.dtype, jnp.promote_types(x_TxD.dtype, jnp.float32)
    num_experts = experts.w_in.shape[0]

    def every_token(expert: ExpertWeights) -> jax.Array:
        h_TxG = jnp.dot(x_TxD, expert.w_in.astype(dtype), preferred_element_type=wide)
        if expert.b_in is not None:
            h_TxG = h_TxG + expert.b_in
        act_TxF = expert_activation(h_TxG.astype(dtype), expert.activation)
        y_TxD = jnp.dot(act_TxF, expert.w_out.astype(dtype), preferred_element_type=wide)
        return y_TxD if expert.b_out is None else y_TxD + expert.b_out

    y_ExTxD = lax.map(every_token, experts)
    weight_TxE = jnp.zeros((x_TxD.shape[0], num_experts), wide)
    weight_TxE = weight_TxE.at[token_A, expert_A].add(weight_A, mode="drop")
    return jnp.einsum("te,etd->td", weight_TxE, y_ExTxD).astype(dtype)


def _ragged(
    ragged_dot: Callable[..., jax.Array],
    x_TxD: jax.Array,
    token_A: jax.Array,
    expert_A: jax.Array,
    weight_A: jax.Array,
    experts: ExpertWeights,
) -> jax.Array:
    dtype, wide = x_TxD.dtype, jnp.promote_types(x_TxD.dtype, jnp.float32)
    num_experts = experts.w_in.shape[0]
    order_A, size_E = sort_by_expert(expert_A, num_experts)
    token_A, expert_A, weight_A = token_A[order_A], expert_A[order_A], weight_A[order_A]
    routed_Ax1 = (expert_A < num_experts)[:, None]

    def routed(rows_AxN: jax.Array) -> jax.Array:
        # A kernel may leave anything in rows of no expert, in its result and in its gradient.
        return jnp.where(routed_Ax1, rows_AxN, 0)

    def project(rows_AxN: jax.Array, w_ExNxM: jax.Array, b_ExM: jax.Array | None) -> jax.Array:
        # In the type of the rows, so that the gradient's products are of that type too.
        out_AxM = ragged_dot(
            routed(rows_AxN), w_ExNxM.astype(dtype), size_E, preferred_element_type=dtype
        )
        return keep(out_AxM if b_ExM is None else (out_AxM + b_ExM[expert_A]).astype(dtype))

    h_AxG = project(x_TxD[token_A], experts.w_in, experts.b_in)
    y_AxD = project(expert_activation(h_AxG, experts.activation), experts.w_out, experts.b_out)
    y_AxD = routed(y_AxD) * weight_A[:, None]
    return jnp.zeros(x_TxD.shape, wide).at[token_A].add(y_AxD).astype(dtype)


def _tokamax_dot(*args: Any, **options: Any) -> jax.Array:
    from tokamax import ragged_dot  # pyright: ignore[reportMissingImports]

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # tokamax would read its own from the command line
    return ragged_dot(*args, **options)


Backend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, ExpertWeights], jax.Array]
BACKENDS: dict[str, Backend] = {
    "reference": _reference,
    "blocked": grouped_ffn,
    "ragged": partial(_ragged, lax.ragged_dot),
    "tokamax": partial(_ragged, _tokamax_dot),
}
