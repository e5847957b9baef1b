"""Velocity networks of the other clock as this package's, and back.

SiT (Ma et al. 2024, willisma/SiT, linear path) and DSMoE have x_t = t x + (1 - t) noise and predict
v = x - noise. Here z_t = (1 - t) x + t noise and the velocity is noise - x. The paths are the same
with t and 1 - t exchanged, so ours(z, t) = -theirs(z, 1 - t), and the weights can absorb both: the
sign goes into the last layer, and 1 - t into the first layer of the timestep's network, whose input
is cos(f t) and sin(f t):

    cos(f (1 - t)) = cos(f) cos(f t) + sin(f) sin(f t)
    sin(f (1 - t)) = sin(f) cos(f t) - cos(f) sin(f t)
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from dit_moe.nn.embeddings import timestep_features

_NEGATED = ("final_layer.linear.weight", "final_layer.linear.bias")
_TIME = "t_embedder.mlp.0.weight"


def exchange_clocks(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """A network's state_dict in the peers' names for the other clock.

    Its own inverse, but for rounding.
    """
    changed: dict[str, Any] = dict(tensors)
    for key in _NEGATED:
        changed[key] = -np.asarray(tensors[key], np.float32)
    # At t = 1 the features are cos(f) and sin(f).
    cos_F, sin_F = np.split(np.asarray(timestep_features(jnp.ones(1)), np.float64)[0], 2)
    w_cos_DxF, w_sin_DxF = np.split(np.asarray(tensors[_TIME], np.float64), 2, axis=1)
    mixed = (w_cos_DxF * cos_F + w_sin_DxF * sin_F, w_cos_DxF * sin_F - w_sin_DxF * cos_F)
    changed[_TIME] = np.concatenate(mixed, axis=1).astype(np.float32)
    return changed
