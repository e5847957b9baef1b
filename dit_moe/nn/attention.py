"""Multi-head self-attention."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.nn.linear import linear


class Attention(nnx.Module):
    """Self-attention over all tokens, with biases and optional normalisation of q and k."""

    def __init__(self, width: int, heads: int, qk_norm: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.heads = heads
        self.qkv = linear(width, 3 * width, ("embed", "heads"), rngs, dtype=dtype)
        self.out = linear(width, width, ("heads", "embed"), rngs, dtype=dtype)
        self.q_norm, self.k_norm = (
            nnx.LayerNorm(width // heads, epsilon=1e-5, rngs=rngs) if qk_norm else None
            for _ in range(2)
        )

    def __call__(self, x_NxSxD: jax.Array) -> jax.Array:
        """Maps [N, S, D] to [N, S, D]."""
        n, s, d = x_NxSxD.shape
        qkv = self.qkv(x_NxSxD).reshape(n, s, 3, self.heads, d // self.heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q).astype(v.dtype), self.k_norm(k).astype(v.dtype)
        # Softmax in float32 in either implementation.
        mixed = jax.nn.dot_product_attention(q, k, v, implementation=_implementation(q))
        return self.out(mixed.reshape(n, s, d))


def _implementation(q: jax.Array) -> Literal["cudnn", "xla"]:
    """cuDNN's fused kernel where it exists: on GPUs, in bfloat16, for heads it supports."""
    head = q.shape[-1]
    fits = q.dtype == jnp.bfloat16 and head % 8 == 0 and head <= 128
    return "cudnn" if jax.default_backend() == "gpu" and fits else "xla"
