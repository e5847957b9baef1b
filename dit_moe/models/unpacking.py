"""Packed matrices among a network's parameters by dotted path, and the network without them.

A matrix of path P is three parameters there: `P.codes`, `P.scale` and `P.zero` (`nn/packed.py`).
"""

import dataclasses
from collections.abc import Mapping

import jax
from flax import nnx

from dit_moe.config import ConfigError, ModelConfig, PackedConfig
from dit_moe.models.dit import DiT
from dit_moe.models.packing import kind_of, packable
from dit_moe.models.parameters import Parameters, abstract_parameters
from dit_moe.nn.packed import Grid, Packed

CODES, SCALE, ZERO = ".codes", ".scale", ".zero"


def whole_model(model: ModelConfig) -> ModelConfig:
    """The network with no matrix packed."""
    return dataclasses.replace(model, packed=())


def packed_kinds(model: ModelConfig) -> dict[str, tuple[PackedConfig, tuple[int, ...]]]:
    """By the path of each packed matrix, how it is packed, and its shape [..., D, G]."""
    if not model.packed:
        return {}
    kinds = {
        path: (kind_of(path, model.packed), like.shape)
        for path, like in abstract_parameters(whole_model(model)).items()
    }
    there = abstract_parameters(model)
    return {p: (kind, shape) for p, (kind, shape) in kinds.items() if kind and p + CODES in there}


def packable_paths(model: ModelConfig) -> list[str]:
    """The paths of all matrices that can be packed."""
    return list(packable(nnx.eval_shape(lambda: DiT(whole_model(model), nnx.Rngs(0)))))


def packed_parameters(path: str, packed: Packed) -> Parameters:
    """The parameters of the matrix of a path."""
    grid = packed.grid
    return {path + CODES: packed.codes, path + SCALE: grid.scale, path + ZERO: grid.zero}


def packed_matrices(model: ModelConfig, parameters: Mapping[str, jax.Array]) -> dict[str, Packed]:
    """The packed matrices among a network's parameters, by path."""
    return {
        path: Packed(
            parameters[path + CODES],
            Grid(parameters[path + SCALE], parameters[path + ZERO]),
            kind.bits,
            kind.group,
            rows=shape[-2],
        )
        for path, (kind, shape) in packed_kinds(model).items()
    }


def unpacked(
    model: ModelConfig, parameters: Mapping[str, jax.Array]
) -> tuple[ModelConfig, Parameters]:
    """The network that computes the same from whole matrices, float32."""
    found = dict(parameters)
    for path, packed in packed_matrices(model, parameters).items():
        for part in (CODES, SCALE, ZERO):
            del found[path + part]
        found[path] = _weights(packed)
    return whole_model(model), found


_weights = jax.jit(Packed.weights)


def check_whole(model: ModelConfig, what: str) -> None:
    """Checks that a network can be trained, or made another of.

    Raises:
      ConfigError: it has packed matrices; the message calls it `what`.
    """
    if model.packed:
        bits = sorted({kind.bits for kind in model.packed})
        raise ConfigError(
            f"{what} has matrices packed to {' and '.join(map(str, bits))} bits (model.packed), of "
            "a network that can be run but not changed; allowed: the model that it was made of"
        )
