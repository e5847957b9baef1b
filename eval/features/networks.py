"""The table of feature networks: what the extractor and the weights command know of each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import numpy as np

from . import dinov2, inception

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Network:
    """A network from published tensors to features of uint8 RGB images."""

    description: Mapping[str, str]
    layout: Callable[[], dict[str, tuple[int, ...]]]
    """Names and shapes of the published tensors."""
    parameters_from: Callable[[Tensors], dict[str, np.ndarray]]
    prepare: Callable[[np.ndarray], np.ndarray]
    """Host's share of the preprocessing: uint8 [N, H, W, 3] to uint8 [N, H', W', 3]."""
    features: Callable[[Mapping[str, jax.Array], jax.Array], dict[str, jax.Array]]
    """(parameters, prepared images) to float32 [N, D] by output; to be jitted."""


NETWORKS = {
    "inception": Network(
        inception.DESCRIPTION,
        inception.layout,
        inception.parameters_from,
        lambda image_NxHxWx3: image_NxHxWx3,  # resized on the device
        inception.features,
    ),
    "dinov2": Network(
        dinov2.DESCRIPTION,
        dinov2.layout,
        dinov2.parameters_from,
        dinov2.prepare,
        dinov2.features,
    ),
}
