"""A network with nested packed matrices, read at fewer bits than they are stored with."""

import dataclasses
from collections.abc import Mapping

import jax

from dit_moe.config import ConfigError, ModelConfig
from dit_moe.models.parameters import Parameters
from dit_moe.models.unpacking import packed_kinds, packed_matrices, packed_parameters
from dit_moe.nn.packed import Packed
from dit_moe.nn.packed_forms import PackedForm
from dit_moe.nn.packed_planes import PackedPlanes, top_bits


def at_bits(
    model: ModelConfig, parameters: Mapping[str, jax.Array], bits: int
) -> tuple[ModelConfig, Parameters]:
    """The network whose nested matrices have so many bits at most, and its parameters; what is not
    nested, or has no more, stays.

    Raises:
      ConfigError: see `check_bits`.
    """
    check_bits(model, bits)
    kinds = tuple(
        kind if kind.nested is None else dataclasses.replace(kind, bits=min(bits, kind.bits))
        for kind in model.packed
    )
    found, matrices = dict(parameters), packed_matrices(model, parameters)
    for path, (kind, _) in packed_kinds(model).items():
        if kind.nested is None or kind.bits <= bits:
            continue
        for name in packed_parameters(path, matrices[path]):
            del found[name]
        found |= packed_parameters(path, _fewer(matrices[path], bits, kind.fewest))
    return dataclasses.replace(model, packed=kinds), found


def check_bits(model: ModelConfig, bits: int) -> None:
    """Checks that a network's nested matrices can be read at so many bits.

    Raises:
      ConfigError: nothing is nested, or some cannot be read at so few or have fewer.
    """
    nested = [kind for kind in model.packed if kind.nested is not None]
    if not nested:
        raise ConfigError(
            f"bits is {bits}, but the model has no nested matrices (model.packed); allowed: none, "
            "or a folder that quantise made with nested=top_bits or nested=planes"
        )
    least, most = max(kind.fewest for kind in nested), max(kind.bits for kind in nested)
    if not least <= bits <= most:
        raise ConfigError(f"bits is {bits}; allowed: {least} to {most}, as the model is nested")


def _fewer(matrix: PackedForm, bits: int, least: int) -> PackedForm:
    if isinstance(matrix, PackedPlanes):
        return matrix.fewer(bits - least)
    assert isinstance(matrix, Packed)
    return top_bits(matrix, bits)
