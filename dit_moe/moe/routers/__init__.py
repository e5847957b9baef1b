"""Routers: modules that turn tokens into a `Routing` record."""

from collections.abc import Callable
from typing import Protocol, TypeVar

import jax
from flax import nnx

from dit_moe.config import (
    ROUTERS,
    BatchPoolRouterConfig,
    ConfigError,
    CosineRouterConfig,
    ExpertChoiceRouterConfig,
    ExpertRaceRouterConfig,
    MixedTopKRouterConfig,
    MoEConfig,
    NoisyTopKRouterConfig,
    NullTopKRouterConfig,
    PrototypeExpertChoiceRouterConfig,
    PrototypeRouterConfig,
    RouterSettings,
    SigmoidTopKRouterConfig,
    SoftRouterConfig,
    TopKRouterConfig,
)
from dit_moe.moe.routers.batch_pool import BatchPoolRouter
from dit_moe.moe.routers.cheap_choice import MixedTopKRouter, NullTopKRouter
from dit_moe.moe.routers.cosine import CosineRouter
from dit_moe.moe.routers.expert_choice import ExpertChoiceRouter, PrototypeExpertChoiceRouter
from dit_moe.moe.routers.noisy import NoisyTopKRouter
from dit_moe.moe.routers.race import ExpertRaceRouter
from dit_moe.moe.routers.soft import SoftRouter
from dit_moe.moe.routers.token_choice import PrototypeRouter, SigmoidTopKRouter, TopKRouter
from dit_moe.moe.routing import Conditioning, Routing


class Router(Protocol):
    """What the MoE layer needs of a router."""

    def __call__(self, x_TxD: jax.Array, conditioning: Conditioning) -> Routing:
        """Routes tokens [T, D] of any float type; all arithmetic is float32."""
        ...


Build = Callable[..., Router]
"""A router's class: from (mixture, its own settings, width, random keys) to a fresh router."""
B = TypeVar("B", bound=Build)
_MODULES: dict[str, Build] = {}


def register_router(settings: type[RouterSettings]) -> Callable[[B], B]:
    """Makes a router known by the name of its settings; a decorator of its class."""
    ROUTERS.add(settings)

    def register(build: B) -> B:
        _MODULES[settings.__dataclass_fields__["name"].default] = build  # pyright: ignore
        return build

    return register


def build_router(config: MoEConfig, width: int, rngs: nnx.Rngs) -> Router:
    """The router that the config names, with fresh parameters.

    Raises:
      ConfigError: its settings are known, but no router was registered for them.
    """
    name = config.router.name
    if name not in _MODULES:
        raise ConfigError(f"router {name!r} has settings, but no module: see register_router")
    return _MODULES[name](config, config.router, width, rngs)


register_router(TopKRouterConfig)(TopKRouter)
register_router(SigmoidTopKRouterConfig)(SigmoidTopKRouter)
register_router(NoisyTopKRouterConfig)(NoisyTopKRouter)
register_router(CosineRouterConfig)(CosineRouter)
register_router(PrototypeRouterConfig)(PrototypeRouter)
register_router(ExpertChoiceRouterConfig)(ExpertChoiceRouter)
register_router(PrototypeExpertChoiceRouterConfig)(PrototypeExpertChoiceRouter)
register_router(BatchPoolRouterConfig)(BatchPoolRouter)
register_router(ExpertRaceRouterConfig)(ExpertRaceRouter)
register_router(NullTopKRouterConfig)(NullTopKRouter)
register_router(MixedTopKRouterConfig)(MixedTopKRouter)
register_router(SoftRouterConfig)(SoftRouter)
