"""How far the experts of a layer are from each other, by their weights."""

import numpy as np

from dit_moe.surgery.compress.layers import Unit


def weights_of(unit: Unit) -> np.ndarray:
    """All weights of every routed expert in a row, [E, P] float32, the same order in each."""
    start = f"{unit.mixture}experts."
    parts = [value for name, value in sorted(unit.parameters.items()) if name.startswith(start)]
    routed = [value[: unit.moe.num_experts].reshape(unit.moe.num_experts, -1) for value in parts]
    return np.concatenate(routed, axis=1)


def squared_distances(unit: Unit) -> np.ndarray:
    """Between the weights of every two routed experts, [E, E] float64; 0 for equal ones."""
    w_ExP = weights_of(unit)
    return np.stack([np.square((w_ExP - w_P).astype(np.float64)).sum(axis=1) for w_P in w_ExP])
