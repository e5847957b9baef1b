"""Multi-head self-attention."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from dit_moe.config import ModelConfig
from dit_moe.nn.linear import linear

ATTENTION_RESIDUAL = "attention"
"""The name under which rematerialisation finds the values mixed by their scores."""


class Attention(nnx.Module):
    """Self-attention over all tokens, with biases; q and k may be normalised, and turned by
    angles."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        width, dtype = config.width, jnp.dtype(config.dtype)
        self.heads = config.heads
        self.qkv = linear(width, 3 * width, ("embed", "heads"), rngs, dtype=dtype)
        self.out = linear(width, width, ("heads", "embed"), rngs, dtype=dtype)
        self.q_norm, self.k_norm = (
            nnx.LayerNorm(
                width // config.heads,
                epsilon=1e-5,
                scale_metadata={"axes": (None,)},
                bias_metadata={"axes": (None,)},
                rngs=rngs,
            )
            if config.qk_norm
            else None
            for _ in range(2)
        )

    def __call__(self, x_NxSxD: jax.Array, angle_SxR: np.ndarray | None = None) -> jax.Array:
        """Maps tokens [N, S, D] to [N, S, D].

        Args:
          x_NxSxD: the tokens.
          angle_SxR: by how much queries and keys are turned, see `rotate`; None: not at all.
        """
        n, s, d = x_NxSxD.shape
        qkv = self.qkv(x_NxSxD).reshape(n, s, 3, self.heads, d // self.heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q).astype(v.dtype), self.k_norm(k).astype(v.dtype)
        if angle_SxR is not None:
            q, k = (rotate(a, angle_SxR) for a in (q, k))
        # Softmax in float32 in either implementation.
        mixed = jax.nn.dot_product_attention(q, k, v, implementation=_implementation(q))
        return self.out(checkpoint_name(mixed.reshape(n, s, d), ATTENTION_RESIDUAL))


def rotate(x_NxSxHxK: jax.Array, angle_SxR: np.ndarray) -> jax.Array:
    """Rotary position embedding of queries or keys over two axes, in float32 (Su et al. 2021).

    The first half of a head is turned by the token's row, the second by its column; in each half,
    the first quarter of the head pairs with the second (DSMoE).

    Args:
      x_NxSxHxK: [N, S, H, K] queries or keys, any float type.
      angle_SxR: see `rotary_angles`.
    """
    half = (*x_NxSxHxK.shape[:-1], 2, 2, -1)
    x, y = jnp.moveaxis(x_NxSxHxK.astype(jnp.float32).reshape(half), -2, 0)
    angle = angle_SxR.reshape(len(angle_SxR), 1, 2, -1)
    cos, sin = np.cos(angle), np.sin(angle)
    turned = jnp.stack([x * cos - y * sin, y * cos + x * sin], axis=-2)
    return turned.reshape(x_NxSxHxK.shape).astype(x_NxSxHxK.dtype)


def _implementation(q: jax.Array) -> Literal["cudnn", "xla"]:
    """cuDNN's fused kernel where it exists: on GPUs, in bfloat16, for heads it supports."""
    head = q.shape[-1]
    fits = q.dtype == jnp.bfloat16 and head % 8 == 0 and head <= 128
    return "cudnn" if jax.default_backend() == "gpu" and fits else "xla"
