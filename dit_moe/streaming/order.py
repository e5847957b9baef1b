"""Which experts a network asks for, evaluation by evaluation."""

import numpy as np

from dit_moe.config import ModelConfig
from dit_moe.models.parameters import stack_of
from dit_moe.moe.assignments import ExpertRanges
from dit_moe.streaming.layout import ROUTED, Layer, Store
from dit_moe.streaming.ring import Block


def order_of(
    store: Store, model: ModelConfig, computed_ExU: np.ndarray, null_E: np.ndarray
) -> list[Block]:
    """The experts that are asked for, in order.

    Args:
      store: of the experts.
      model: the network.
      computed_ExU: which units each evaluation computes (`caching.schedule.Schedule`), [E, U] bool.
      null_E: whether images without a class are among those of each evaluation, [E] bool; without
        them, no token has the unconditional expert.
    """
    layers = [(number, *_place(model, layer)) for number, layer in enumerate(store.layers)]
    return [
        (number, expert)
        for computed_U, null in zip(computed_ExU, null_E, strict=True)
        for number, unit, conditional in layers
        if computed_U[unit]
        for expert in range(store.layers[number].experts if null else conditional)
    ]


def _place(model: ModelConfig, layer: Layer) -> tuple[int, int]:
    """The unit of a layer, counted through the segments, and how many of its experts images with
    a class may have: the first ones."""
    number = int(str(stack_of(layer.path)).split(".")[-2])
    before = sum(segment.repeats for segment in model.trunk[:number])
    moe = model.trunk[number].moe
    assert moe is not None
    first = layer.path.endswith(ROUTED)
    return before + layer.unit, layer.experts - first * ExpertRanges.of(moe).unconditional
