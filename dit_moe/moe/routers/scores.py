"""What routers share: how tokens are scored, and how many of them an expert may choose."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.config.routers import Gate, GatedSettings
from dit_moe.moe import losses
from dit_moe.nn.linear import KAIMING

GATES: dict[Gate, Callable[[jax.Array], jax.Array]] = {
    "identity": lambda logits: logits,
    "softmax": jax.nn.softmax,
    "sigmoid": jax.nn.sigmoid,
}
"""What makes scores of logits or cosines, over the last axis."""


def linear_scores(x_TxD: jax.Array, kernel_DxE: jax.Array) -> jax.Array:
    """A linear map at full matmul precision: float32 [T, E]."""
    return jnp.matmul(x_TxD, kernel_DxE, precision=jax.lax.Precision.HIGHEST)


def z_term(coef: float, logits_TxE: jax.Array) -> dict[str, jax.Array]:
    """The router z-loss, scaled, by the name that the log has for it; nothing where coef is 0."""
    return {"router_z": coef * losses.z_loss(logits_TxE)} if coef else {}


def gated_scores(
    x_TxD: jax.Array, kernel_DxE: jax.Array, settings: GatedSettings
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The gate's values of a linear map, float32 [T, E], and the router z-loss as `z_term`."""
    logits_TxE = linear_scores(x_TxD, kernel_DxE)
    return GATES[settings.gate](logits_TxE), z_term(settings.z_coef, logits_TxE)


def init_kernel(num_experts: int, width: int, rngs: nnx.Rngs) -> nnx.Param:
    """The linear map [D, E] of the routers in which experts choose (EC-DiT, DiffMoE)."""
    init = jax.nn.initializers.normal(0.006)
    return nnx.Param(init(rngs.params(), (width, num_experts), jnp.float32), axes=("embed", None))


def init_top_k_kernel(num_experts: int, width: int, rngs: nnx.Rngs) -> nnx.Param:
    """The linear map [D, E] of the routers in which tokens choose (DiT-MoE)."""
    return nnx.Param(
        KAIMING(rngs.params(), (width, num_experts), jnp.float32), axes=("embed", None)
    )


def init_prototypes(num_experts: int, width: int, rngs: nnx.Rngs) -> nnx.Param:
    """The prototypes [E, D] of ProMoE."""
    init = jax.nn.initializers.normal(0.02)
    return nnx.Param(init(rngs.params(), (num_experts, width), jnp.float32), axes=(None, "embed"))


def expert_capacity(num_tokens: int, num_experts: int, top_k: int) -> int:
    """How many of the tokens each expert chooses, so that a token has top_k experts on average.

    Rounded down as in the public codes of EC-DiT, DiffMoE and ProMoE, but at least 1.
    """
    return max(int(num_tokens / num_experts * top_k), 1)
