"""Which matrices are packed, and how many bits each of them has, expert by expert."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from dit_moe.config import ModelConfig, PackedConfig
from dit_moe.config.packed import Nested
from dit_moe.models.parameters import abstract_parameters, stack_of
from dit_moe.models.unpacking import packable_paths
from dit_moe.surgery.compress.layers import network_of, units_of
from dit_moe.surgery.compress.steps import Model

Bits = dict[str, np.ndarray]
"""By the path of each matrix that is packed, int of its leading axes: [U] of units, [U, E] of
experts, [] of a matrix that is in no stack."""


class BitsByKind(Protocol):
    """Bits of the matrices by what they are; 0: they stay whole, None: as `bits`."""

    @property
    def bits(self) -> int:
        """Of experts, and of the feed-forward networks of dense blocks."""
        ...

    @property
    def attention(self) -> int | None:
        """Of attention."""
        ...

    @property
    def shared(self) -> int | None:
        """Of shared experts."""
        ...

    @property
    def modulation(self) -> int:
        """Of adaptive normalisation."""
        ...


def bits_of(network: ModelConfig, settings: BitsByKind) -> dict[str, int]:
    """The bits of every matrix that is packed, by path.

    Embeddings, patches in and out, routers, and what mixes or guesses are not among them.
    """
    found = {}
    for path in packable_paths(network):
        name = path.removeprefix(stack_of(path) or "")
        if ".router." in name:
            continue
        if ".shared." in name:
            number = settings.bits if settings.shared is None else settings.shared
        elif is_feed_forward(name):
            number = settings.bits
        elif ".attention." in name:
            number = settings.bits if settings.attention is None else settings.attention
        elif is_modulation(name):
            number = settings.modulation
        else:
            continue
        if number:
            found[path] = number
    return found


def is_feed_forward(path: str) -> bool:
    """Whether a matrix is one of experts, shared ones included, or of a dense block's network."""
    return ".feed_forward." in path and path.endswith((".w_in", ".w_out"))


def is_modulation(path: str) -> bool:
    """Whether a matrix is one of adaptive normalisation."""
    return path.endswith("modulation.kernel")


def spread(network: ModelConfig, bits: Mapping[str, int]) -> Bits:
    """The same bits for every unit and expert of a stack."""
    shapes = abstract_parameters(network)
    return {path: np.full(shapes[path].shape[:-2], number) for path, number in bits.items()}


def apart(model: Model, bits: Bits) -> tuple[Model, Bits]:
    """The same model, in whose segments all units have as many experts of each number of bits.

    Stacks have one shape for all units, so that units that differ in this become segments of their
    own; where none do, the model is as it was. Bits are told by the new paths.
    """
    network = model.config.model
    units = units_of(network, bits)
    looks = [
        tuple((name, tuple(np.sort(own, axis=None))) for name, own in sorted(u.parameters.items()))
        for u in units
    ]
    if len(set(zip(_segments(network), looks, strict=True))) == len(network.trunk):
        return model, bits
    whole, parameters = network_of(
        network, model.parameters, units_of(network, model.parameters), looks
    )
    return model.of(whole, parameters), network_of(network, bits, units, looks)[1]


def _segments(network: ModelConfig) -> list[int]:
    """For each unit the number of its segment."""
    return [i for i, segment in enumerate(network.trunk) for _ in range(segment.repeats)]


def kinds_of(
    bits: Bits, group: int, nested: Nested | None = None, least: int = 2
) -> tuple[PackedConfig, ...]:
    """What a config says of matrices with these bits, which `apart` has parted.

    Args:
      bits: of each.
      group: of all.
      nested: see `PackedConfig`; not of adaptive normalisation.
      least: see there.
    """
    by_look: dict[tuple[int, tuple[int, ...], bool], list[str]] = {}
    for path, own in bits.items():
        most = int(own.max())
        experts = () if (own == most).all() else _falling(own)
        inside = nested is not None and most > least and not is_modulation(path)
        by_look.setdefault((most, experts, inside), []).append(path)
    return tuple(
        PackedConfig(
            tuple(paths),
            most,
            group,
            experts,
            nested=nested if inside else None,
            least=least if inside else None,
        )
        for (most, experts, inside), paths in sorted(by_look.items())
    )


def _falling(bits_UxE: np.ndarray) -> tuple[int, ...]:
    return tuple(
        int(number) for number in np.sort(bits_UxE.reshape(-1, bits_UxE.shape[-1])[0])[::-1]
    )


def mean_bits(network: ModelConfig, bits: Bits) -> float:
    """Of a weight of the packed matrices, scales and zeros not counted."""
    shapes = abstract_parameters(network)
    sizes = {path: np.prod(shapes[path].shape[-2:]) for path in bits}
    number = sum(size * bits[path].size for path, size in sizes.items())
    return float(sum(size * bits[path].sum() for path, size in sizes.items()) / number)
