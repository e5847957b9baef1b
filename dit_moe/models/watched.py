"""A network whose MoE layers tell more of what they see than their routing."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
from flax import nnx

from dit_moe.config import ModelConfig
from dit_moe.models.dit import DiT
from dit_moe.models.parameters import functional
from dit_moe.moe.layer import MoELayer
from dit_moe.moe.routing import Conditioning, Routing
from dit_moe.nn.feed_forward import Experts

Measure = Callable[[jax.Array, Conditioning, Routing, Experts], Mapping[str, jax.Array]]
"""What is found in a layer, as arrays by name: from the tokens that its router sees, float [T, D]
(where an image chooses as one, its mean token), what it decides, and the experts of its stack.

These are of the first kind, and the routing has their indices; others (`moe.unlike`) count as none.
"""


class _Watched(nnx.Module):
    """A layer's router that also tells what a measure finds."""

    def __init__(self, layer: MoELayer, measure: Measure):
        self.router, self.experts, self.stand_in = layer.router, layer.experts, layer.stand_in
        self.ranges, self.measure = layer.ranges, measure

    def __call__(self, x_TxD: jax.Array, conditioning: Conditioning) -> Routing:
        decided = routing = self.router(x_TxD, conditioning)
        if self.stand_in is not None:
            decided = self.ranges.stood_in(routing, self.stand_in[...])
        own = self.ranges.within(decided, 0)
        found = self.measure(x_TxD, conditioning, own, self.experts)
        return dataclasses.replace(routing, metrics={**routing.metrics, **found})


def moe_layers(model: DiT) -> list[MoELayer]:
    """The MoE layers of a network: those of a segment as one, stacked."""
    last_blocks = (units.blocks[-1] for units in model.trunk.segments)
    return [b.feed_forward for b in last_blocks if isinstance(b.feed_forward, MoELayer)]


def watched(config: ModelConfig, parameters: Mapping[str, jax.Array], measure: Measure) -> DiT:
    """The network, in whose routing the metrics have what the measure finds. Usable under jit."""
    model = functional(config)(dict(parameters))
    for layer in moe_layers(model):
        layer.router = _Watched(layer, measure)
    return model
