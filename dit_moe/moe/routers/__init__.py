"""Routers: modules that turn tokens into a `Routing` record."""

from typing import Protocol

import jax
from flax import nnx

from dit_moe.config import MoEConfig
from dit_moe.moe.routers.batch_pool import BatchPoolRouter
from dit_moe.moe.routers.expert_choice import ExpertChoiceRouter, PrototypeExpertChoiceRouter
from dit_moe.moe.routers.token_choice import PrototypeRouter, SigmoidTopKRouter, TopKRouter
from dit_moe.moe.routing import Conditioning, Routing


class Router(Protocol):
    """What the MoE layer needs of a router."""

    def __call__(self, x_TxD: jax.Array, conditioning: Conditioning) -> Routing:
        """Routes tokens [T, D] of any float type; all arithmetic is float32."""
        ...


ROUTERS = {
    "top_k": TopKRouter,
    "sigmoid_top_k": SigmoidTopKRouter,
    "prototype": PrototypeRouter,
    "expert_choice": ExpertChoiceRouter,
    "prototype_expert_choice": PrototypeExpertChoiceRouter,
    "batch_pool": BatchPoolRouter,
}


def build_router(config: MoEConfig, width: int, rngs: nnx.Rngs) -> Router:
    """The router that the config names, with fresh parameters."""
    return ROUTERS[config.router.name](config, config.router, width, rngs)
