"""The transformer block with adaLN-zero, and the group of blocks that is scanned."""

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.config import ModelConfig
from dit_moe.moe.experts import FeedForward
from dit_moe.moe.layer import MoELayer
from dit_moe.moe.routing import Conditioning, Routing
from dit_moe.nn.attention import Attention
from dit_moe.nn.linear import linear


def modulate(x_NxSxD: jax.Array, shift_NxD: jax.Array, scale_NxD: jax.Array) -> jax.Array:
    """LayerNorm without parameters (eps 1e-6, in float32), then x (1 + scale) + shift (DiT)."""
    x = x_NxSxD.astype(jnp.float32)
    x = jax.nn.standardize(x, variance=jnp.var(x, axis=-1, keepdims=True), epsilon=1e-6)
    return x.astype(x_NxSxD.dtype) * (1 + scale_NxD[:, None]) + shift_NxD[:, None]


class Block(nnx.Module):
    """Attention and a feed-forward, dense or MoE, each modulated and gated by the condition."""

    def __init__(self, config: ModelConfig, is_moe: bool, rngs: nnx.Rngs):
        width, dtype = config.width, jnp.dtype(config.dtype)
        self.attention = Attention(config, rngs)
        if is_moe:
            assert config.moe is not None
            self.feed_forward = MoELayer(config.moe, width, rngs)
        else:
            hidden = int(config.mlp_ratio * width)
            self.feed_forward = FeedForward(config.mlp_activation, width, hidden, rngs)
        zeros = jax.nn.initializers.zeros
        self.modulation = linear(width, 6 * width, ("embed", None), rngs, dtype=dtype, init=zeros)

    def __call__(
        self, x_NxSxD: jax.Array, c_NxD: jax.Array, is_null_N: jax.Array, *, train: bool
    ) -> tuple[jax.Array, Routing | None]:
        """Updates tokens [N, S, D] under the condition [N, D]; a dense block has no routing."""
        n, s, d = x_NxSxD.shape
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = jnp.split(
            self.modulation(jax.nn.silu(c_NxD)), 6, axis=-1
        )
        x_NxSxD += gate_a[:, None] * self.attention(modulate(x_NxSxD, shift_a, scale_a))
        h_NxSxD = modulate(x_NxSxD, shift_f, scale_f)
        if isinstance(self.feed_forward, MoELayer):
            conditioning = Conditioning(jnp.repeat(is_null_N, s), s, train)
            h_TxD, routing = self.feed_forward(h_NxSxD.reshape(n * s, d), conditioning)
            h_NxSxD = h_TxD.reshape(n, s, d)
        else:
            h_NxSxD, routing = self.feed_forward(h_NxSxD), None
        return x_NxSxD + gate_f[:, None] * h_NxSxD, routing


class Group(nnx.Module):
    """The repeating unit of the network: dense blocks up to and including one MoE block.

    All groups have the same structure, so that a scan can run over their stacked parameters.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        size = group_size(config)
        self.blocks = nnx.List(
            Block(config, config.moe is not None and i == size - 1, rngs) for i in range(size)
        )

    def __call__(
        self, x_NxSxD: jax.Array, c_NxD: jax.Array, is_null_N: jax.Array, *, train: bool
    ) -> tuple[jax.Array, Routing | None]:
        """Applies the blocks in order; the routing is that of the last."""
        routing = None
        for block in self.blocks:
            x_NxSxD, routing = block(x_NxSxD, c_NxD, is_null_N, train=train)
        return x_NxSxD, routing


def group_size(config: ModelConfig) -> int:
    """Blocks per group."""
    return config.moe.every if config.moe is not None else 1
