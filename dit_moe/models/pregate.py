"""The router before the trunk, which decides for all MoE layers at once (Read-ME)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.config import ModelConfig
from dit_moe.models.block import Block, Given
from dit_moe.moe.routers import build_router
from dit_moe.moe.routers.by_image import route
from dit_moe.moe.routing import Conditioning, Routing
from dit_moe.nn.linear import linear
from dit_moe.nn.modulation import modulate


class Pregate(nnx.Module):
    """A transformer block of few heads over the tokens that enter the trunk, under its condition,
    and a router on top of it. Its attention sees the whole image: nothing is causal here."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        own, self.moe = config.before, config.mixtures[0]
        assert own is not None
        dtype, zeros = jnp.dtype(config.dtype), jax.nn.initializers.zeros
        self.tokens, self.condition = (
            linear(config.width, own.width, ("embed", None), rngs, dtype=dtype) for _ in range(2)
        )
        self.block = Block(own, None, rngs)
        self.modulation = linear(
            own.width, 2 * own.width, ("embed", None), rngs, dtype=dtype, init=zeros
        )
        self.router = build_router(self.moe.as_scored, own.width, rngs)

    def __call__(self, x_NxSxD: jax.Array, given: Given) -> Routing:
        """The record of all N S tokens, which holds for every MoE layer.

        Args:
          x_NxSxD: [N, S, D] tokens as they enter the trunk.
          given: what every block may know.
        """
        n, s, _ = x_NxSxD.shape
        c_NxW = self.condition(given.condition)
        h_NxSxW, _ = self.block(self.tokens(x_NxSxD), dataclasses.replace(given, condition=c_NxW))
        shift_NxW, scale_NxW = jnp.split(self.modulation(jax.nn.silu(c_NxW)), 2, axis=-1)
        h_TxW = modulate(h_NxSxW, shift_NxW, scale_NxW).reshape(n * s, -1)
        shapes = self.moe.router.hands_on(self.moe)
        previous = {name: jnp.zeros((n * s, *shape)) for name, shape in shapes.items()}
        is_null_T = jnp.repeat(given.is_null, s)
        return route(
            self.moe, self.router, h_TxW, Conditioning(is_null_T, s, given.train, previous)
        )
