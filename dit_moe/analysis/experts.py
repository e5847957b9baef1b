"""How alike experts are, and to which classes prototypes are near."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dit_moe.analysis.record import Prototypes
from dit_moe.config import ModelConfig
from dit_moe.models.parameters import Parameters, functional
from dit_moe.models.watched import moe_layers
from dit_moe.nn.feed_forward import ExpertWeights

Matrices = tuple[tuple[tuple[float, ...], ...], ...]


def expert_similarity(config: ModelConfig, parameters: Parameters) -> Matrices:
    """Cosines of the experts' weights, all of an expert's as one vector: `[L][E][E]`."""
    layers = moe_layers(functional(config)(parameters))
    whole = (layer.experts.bank().stack(jnp.dtype("float32")) for layer in layers)
    return tuple(m for weights in whole for m in matrices(_similarity(weights)))


def _similarity(weights: ExpertWeights) -> np.ndarray:
    arrays = (weights.w_in, weights.w_out, weights.b_in, weights.b_out)

    @jax.jit
    def gram(w_LxExN: jax.Array) -> jax.Array:
        return jnp.einsum("lin,ljn->lij", w_LxExN, w_LxExN, precision=jax.lax.Precision.HIGHEST)

    total_LxExE = sum(gram(w.reshape(*w.shape[:2], -1)) for w in arrays if w is not None)
    total_LxExE = np.asarray(total_LxExE)
    length_LxE = np.sqrt(np.diagonal(total_LxExE, axis1=1, axis2=2))
    return total_LxExE / np.maximum(length_LxE[:, :, None] * length_LxE[:, None, :], 1e-20)


def prototype_classes(
    config: ModelConfig, parameters: Parameters, mean_LxYxD: np.ndarray
) -> Prototypes | None:
    """How near prototypes are to the mean tokens of the classes; None without prototypes.

    Args:
      config: of the network.
      parameters: of the network.
      mean_LxYxD: mean of the tokens that the router of each layer sees, by class.
    """
    if config.pregate is not None:
        return None  # its router sees tokens that are no layer's
    mean, difference, first = [], [], 0
    for layer, repeats in zip(
        moe_layers(functional(config)(parameters)),
        [segment.repeats for segment in config.trunk if segment.moe],
        strict=True,
    ):
        own_LxYxD = mean_LxYxD[first : first + repeats]
        first += repeats
        prototypes = getattr(layer.router, "prototypes", None)
        if not isinstance(prototypes, nnx.Param):
            mean += [()] * repeats
            difference += [()] * repeats
            continue
        prototypes_LxExD = np.asarray(prototypes[...], np.float64)
        mean += matrices(_cosines(prototypes_LxExD, own_LxYxD))
        difference_LxYxD = own_LxYxD - own_LxYxD.mean(axis=1, keepdims=True)
        difference += matrices(_cosines(prototypes_LxExD, difference_LxYxD))
    if not any(mean):
        return None
    return Prototypes(with_class_mean=tuple(mean), with_class_difference=tuple(difference))


def matrices(array: np.ndarray) -> Matrices:
    """[L, M, N] as tuples."""
    return tuple(tuple(tuple(row) for row in matrix) for matrix in array.tolist())


def _cosines(a_LxMxD: np.ndarray, b_LxNxD: np.ndarray) -> np.ndarray:
    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)

    return unit(a_LxMxD) @ unit(b_LxNxD).swapaxes(1, 2)
