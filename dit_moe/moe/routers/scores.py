"""What routers share: how tokens are scored, and how many of them an expert may choose."""

import jax
import jax.numpy as jnp
from flax import nnx

ACTIVATIONS = {
    "identity": lambda similarity: similarity,
    "softmax": jax.nn.softmax,
    "sigmoid": jax.nn.sigmoid,
}
"""What makes scores of cosines, over the last axis."""


def linear_scores(x_TxD: jax.Array, kernel_DxE: jax.Array) -> jax.Array:
    """A linear map at full matmul precision: float32 [T, E]."""
    return jnp.matmul(x_TxD, kernel_DxE, precision=jax.lax.Precision.HIGHEST)


def softmax_scores(x_TxD: jax.Array, kernel_DxE: jax.Array) -> jax.Array:
    """Softmax over experts of a linear map: float32 [T, E]."""
    return jax.nn.softmax(linear_scores(x_TxD, kernel_DxE))


def init_kernel(num_experts: int, width: int, rngs: nnx.Rngs) -> nnx.Param:
    """The linear map [D, E] of the routers in which experts choose (EC-DiT, DiffMoE)."""
    init = jax.nn.initializers.normal(0.006)
    return nnx.Param(init(rngs.params(), (width, num_experts), jnp.float32), axes=("embed", None))


def init_prototypes(num_experts: int, width: int, rngs: nnx.Rngs) -> nnx.Param:
    """The prototypes [E, D] of ProMoE."""
    init = jax.nn.initializers.normal(0.02)
    return nnx.Param(init(rngs.params(), (num_experts, width), jnp.float32), axes=(None, "embed"))


def expert_capacity(num_tokens: int, num_experts: int, top_k: int) -> int:
    """How many of the tokens each expert chooses, so that a token has top_k experts on average.

    Rounded down as in the public codes of EC-DiT, DiffMoE and ProMoE, but at least 1.
    """
    return max(int(num_tokens / num_experts * top_k), 1)
