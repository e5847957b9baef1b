"""Attention from the tokens of one sequence to those of another."""

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.config import ModelConfig
from dit_moe.nn.attention import mix_values
from dit_moe.nn.linear import linear


class CrossAttention(nnx.Module):
    """Each token of a sequence attends to all of another one, with biases."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        width, dtype = config.width, jnp.dtype(config.dtype)
        self.heads = config.heads
        self.query = linear(width, width, ("embed", "heads"), rngs, dtype=dtype)
        self.key_value = linear(width, 2 * width, ("embed", "heads"), rngs, dtype=dtype)
        self.out = linear(width, width, ("heads", "embed"), rngs, dtype=dtype)

    def __call__(self, x_NxSxD: jax.Array, other_NxTxD: jax.Array) -> jax.Array:
        """Maps tokens [N, S, D], which ask, and [N, T, D], which are read, to [N, S, D]."""

        def in_heads(a: jax.Array) -> jax.Array:
            return a.reshape(*a.shape[:2], self.heads, -1)

        key, value = jnp.split(self.key_value(other_NxTxD), 2, axis=-1)
        mixed = mix_values(*map(in_heads, (self.query(x_NxSxD), key, value)))
        return self.out(mixed.reshape(x_NxSxD.shape))
