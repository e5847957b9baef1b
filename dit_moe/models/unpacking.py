"""Packed matrices among a network's parameters by dotted path, and the network without them.

A matrix of path P is three parameters there: `P.codes`, `P.scale` and `P.zero` (`nn/packed.py`).
Of experts with unlike bits each part has these, as `P.parts.0` and so on, and `P.place` tells who
lies where (`nn/packed_parts.py`); of one with planes the first bits are `P.base`, beside `P.planes`
and `P.plane_scale` (`nn/packed_planes.py`).
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
from dit_moe.nn.packed_forms import PackedForm
from dit_moe.nn.packed_parts import PackedParts, bits_of_parts
from dit_moe.nn.packed_planes import PackedPlanes

CODES, SCALE, ZERO = ".codes", ".scale", ".zero"
PARTS, PLACE = ".parts.", ".place"
BASE, PLANES, PLANE_SCALE = ".base", ".planes", ".plane_scale"


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
    return {
        path: (kind, shape)
        for path, (kind, shape) in kinds.items()
        if kind and any(path + end in there for end in (CODES, PLACE, PLANES))
    }


def packable_paths(model: ModelConfig) -> list[str]:
    """The paths of all matrices that can be packed."""
    return list(packable(nnx.eval_shape(lambda: DiT(whole_model(model), nnx.Rngs(0)))))


def packed_parameters(path: str, packed: PackedForm) -> Parameters:
    """The parameters of the matrix, or stack of matrices, of a path."""
    if isinstance(packed, PackedParts):
        found = {path + PLACE: packed.place}
        for number, part in enumerate(packed.parts):
            found |= packed_parameters(f"{path}{PARTS}{number}", part)
        return found
    if isinstance(packed, PackedPlanes):
        of_planes = {path + PLANES: packed.planes, path + PLANE_SCALE: packed.scale}
        return {**packed_parameters(path + BASE, packed.base), **of_planes}
    grid = packed.grid
    return {path + CODES: packed.codes, path + SCALE: grid.scale, path + ZERO: grid.zero}


def packed_matrices(
    model: ModelConfig, parameters: Mapping[str, jax.Array]
) -> dict[str, PackedForm]:
    """The packed matrices among a network's parameters, by path."""

    def matrix(path: str, bits: int, group: int, rows: int) -> Packed:
        grid = Grid(parameters[path + SCALE], parameters[path + ZERO])
        return Packed(parameters[path + CODES], grid, bits, group, rows)

    found: dict[str, PackedForm] = {}
    for path, (kind, (*_, rows, _)) in packed_kinds(model).items():
        if kind.experts:
            parts = tuple(
                matrix(f"{path}{PARTS}{number}", bits, kind.group, rows)
                for number, (bits, _) in enumerate(bits_of_parts(kind.experts))
            )
            found[path] = PackedParts(parts, parameters[path + PLACE])
        elif kind.has_planes:
            base = matrix(path + BASE, kind.fewest, kind.group, rows)
            found[path] = PackedPlanes(
                base, parameters[path + PLANES], parameters[path + PLANE_SCALE]
            )
        else:
            found[path] = matrix(path, kind.bits, kind.group, rows)
    return found


def unpacked(
    model: ModelConfig, parameters: Mapping[str, jax.Array]
) -> tuple[ModelConfig, Parameters]:
    """The network that computes the same from whole matrices, float32."""
    found = dict(parameters)
    for path, packed in packed_matrices(model, parameters).items():
        for part in packed_parameters(path, packed):
            del found[part]
        found[path] = _weights(packed)
    return whole_model(model), found


_weights = jax.jit(lambda packed: packed.weights())


def check_whole(model: ModelConfig, what: str) -> None:
    """Checks that a network can be trained, or made another of.

    Raises:
      ConfigError: it has packed matrices; the message calls it `what`.
    """
    if model.packed:
        bits = sorted({bits for kind in model.packed for bits in kind.widths})
        raise ConfigError(
            f"{what} has matrices packed to {' and '.join(map(str, bits))} bits (model.packed), of "
            "a network that can be run but not changed; allowed: the model that it was made of"
        )
