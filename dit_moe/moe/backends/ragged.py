"""Rows sorted by expert, times their experts' matrices in one ragged product."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from dit_moe.moe.assignments import sort_by_expert
from dit_moe.moe.backends.residuals import keep
from dit_moe.moe.experts.bank import ExpertBank
from dit_moe.nn.feed_forward import expert_activation


def grouped(
    ragged_dot: Callable[..., jax.Array],
    x_TxD: jax.Array,
    token_A: jax.Array,
    expert_A: jax.Array,
    weight_A: jax.Array,
    experts: ExpertBank,
) -> jax.Array:
    """Dispatch by a product of rows with the matrix of their group; see `dispatch`.

    Args:
      ragged_dot: that product, as `jax.lax.ragged_dot`.
      x_TxD: as in `dispatch`, with what follows.
      token_A: of the routing.
      expert_A: of the routing.
      weight_A: of the routing.
      experts: the bank.
    """
    dtype, wide = x_TxD.dtype, jnp.promote_types(x_TxD.dtype, jnp.float32)
    num_experts, weights = experts.num_experts, experts.stack(dtype)
    order_A, size_E = sort_by_expert(expert_A, num_experts)
    token_A, expert_A, weight_A = token_A[order_A], expert_A[order_A], weight_A[order_A]
    routed_Ax1 = (expert_A < num_experts)[:, None]

    def routed(rows_AxN: jax.Array) -> jax.Array:
        # A kernel may leave anything in rows of no expert, in its result and in its gradient.
        return jnp.where(routed_Ax1, rows_AxN, 0)

    def project(rows_AxN: jax.Array, w_ExNxM: jax.Array, b_ExM: jax.Array | None) -> jax.Array:
        # In the type of the rows, so that the gradient's products are of that type too.
        out_AxM = ragged_dot(routed(rows_AxN), w_ExNxM, size_E, preferred_element_type=dtype)
        return keep(out_AxM if b_ExM is None else (out_AxM + b_ExM[expert_A]).astype(dtype))

    h_AxG = project(x_TxD[token_A], weights.w_in, weights.b_in)
    y_AxD = project(expert_activation(h_AxG, weights.kind), weights.w_out, weights.b_out)
    y_AxD = routed(y_AxD) * weight_A[:, None]
    return jnp.zeros(x_TxD.shape, wide).at[token_A].add(y_AxD).astype(dtype)


def tokamax_dot(*args: Any, **options: Any) -> jax.Array:
    """`jax.lax.ragged_dot` by tokamax's kernels."""
    from tokamax import ragged_dot  # pyright: ignore[reportMissingImports]

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # tokamax would read its own from the command line
    return ragged_dot(*args, **options)
