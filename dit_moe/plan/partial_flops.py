"""Floating-point operations of evaluations of which only some units are computed."""

import dataclasses

import numpy as np

from dit_moe.config import ModelConfig
from dit_moe.plan.flops import image_flops


def partial_flops(model: ModelConfig, computed_ExU: np.ndarray, *, gates: bool) -> np.ndarray:
    """Operations of one image in every evaluation: [E] float64.

    Args:
      model: the network.
      computed_ExU: which units are computed, [E, U] bool or their share, float.
      gates: whether of the others the gates are computed, as known outputs need them.
    """
    modulated = 2 * 6 * model.width**2
    units_U, gates_U = [], []
    for segment in model.trunk:
        alone = model.with_only(dataclasses.replace(segment, depth=segment.unit))
        of_unit = image_flops(alone).total - _ends(alone)
        units_U += [of_unit] * segment.repeats
        gates_U += [gates * modulated * segment.unit] * segment.repeats
    share_ExU = np.asarray(computed_ExU, np.float64)
    return _ends(model) + share_ExU @ np.array(units_U) + (1 - share_ExU) @ np.array(gates_U)


def _ends(model: ModelConfig) -> float:
    """Patches, time, the router before the trunk, and the way back."""
    flops = image_flops(model)
    return flops.embedding + flops.pregate + flops.output + 2 * 2 * model.width**2
