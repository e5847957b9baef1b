"""Every expert on every token, masked: what the other back ends are tested against."""

import jax
import jax.numpy as jnp
from jax import lax

from dit_moe.moe.experts.bank import ExpertBank
from dit_moe.nn.feed_forward import expert_activation


def reference(
    x_TxD: jax.Array,
    token_A: jax.Array,
    expert_A: jax.Array,
    weight_A: jax.Array,
    experts: ExpertBank,
) -> jax.Array:
    """Dispatch as it is defined; see `dispatch`."""
    dtype, wide = x_TxD.dtype, jnp.promote_types(x_TxD.dtype, jnp.float32)
    num_experts = experts.num_experts

    def every_token(index: jax.Array) -> jax.Array:
        expert = experts.expert(index, dtype)
        h_TxG = jnp.dot(x_TxD, expert.w_in, preferred_element_type=wide)
        if expert.b_in is not None:
            h_TxG = h_TxG + expert.b_in
        act_TxF = expert_activation(h_TxG.astype(dtype), expert.kind)
        y_TxD = jnp.dot(act_TxF, expert.w_out, preferred_element_type=wide)
        return y_TxD if expert.b_out is None else y_TxD + expert.b_out

    y_ExTxD = lax.map(every_token, jnp.arange(num_experts))
    weight_TxE = jnp.zeros((x_TxD.shape[0], num_experts), wide)
    weight_TxE = weight_TxE.at[token_A, expert_A].add(weight_A, mode="drop")
    return jnp.einsum("te,etd->td", weight_TxE, y_ExTxD).astype(dtype)
