"""Multi-head self-attention."""

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
                epsilon=config.qk_norm_epsilon,
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
        return self.out(self.mix(*self.split(self.qkv(x_NxSxD), angle_SxR)))

    def split(
        self, qkv_NxSxG: jax.Array, angle_SxR: np.ndarray | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values [N, S, H, K] of what `qkv` gives, normalised and turned."""
        n, s, g = qkv_NxSxG.shape
        # The gradient of a split is one array; of three slices it would be three to be added.
        q, k, v = (
            part.reshape(n, s, self.heads, g // 3 // self.heads)
            for part in jnp.split(qkv_NxSxG, 3, axis=-1)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q).astype(v.dtype), self.k_norm(k).astype(v.dtype)
        if angle_SxR is not None:
            q, k = (rotate(a, angle_SxR) for a in (q, k))
        return q, k, v

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """The values mixed by their scores: [N, S, D], before the projection `out`."""
        n, s, _, _ = v.shape
        return checkpoint_name(mix_values(q, k, v).reshape(n, s, -1), ATTENTION_RESIDUAL)


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


LONG = 64
"""Tokens from which on CPUs mix values by this module's own products."""


def mix_values(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(K)) v with the softmax in float32: q [N, S, H, K], and k and v
    [N, T, H, K], to [N, S, H, K].

    By cuDNN's fused kernel where it exists: on GPUs, in bfloat16, for heads it supports.
    """
    platform, head = jax.default_backend(), q.shape[-1]
    if platform == "cpu" and q.shape[1] >= LONG:
        return _mix_on_cpu(q, k, v)
    fused = platform == "gpu" and q.dtype == jnp.bfloat16 and head % 8 == 0 and head <= 128
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn" if fused else "xla")


def _mix_on_cpu(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """The same in products that CPUs run faster: heads before tokens, and values before division.

    A row's largest score, which keeps the exponentials finite, drops out of the result; so it
    needs no gradient.
    """
    q, k, v = (a.swapaxes(1, 2) for a in (q * q.shape[-1] ** -0.5, k, v))
    wide = jnp.promote_types(q.dtype, jnp.float32)
    score_NxHxSxS = jnp.einsum("nhsk,nhtk->nhst", q, k, preferred_element_type=wide)
    largest = jax.lax.stop_gradient(jnp.max(score_NxHxSxS, axis=-1, keepdims=True))
    weight_NxHxSxS = jnp.exp(score_NxHxSxS - largest)
    mixed_NxHxSxK = jnp.einsum(
        "nhst,nhtk->nhsk", weight_NxHxSxS.astype(v.dtype), v, preferred_element_type=wide
    )
    total = jnp.sum(weight_NxHxSxS, axis=-1, keepdims=True)
    return (mixed_NxHxSxK / total).astype(v.dtype).swapaxes(1, 2)
