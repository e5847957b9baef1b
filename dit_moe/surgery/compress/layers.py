"""A network as a list of units, each of its own make, and back.

What is the same for all layers in a config may differ by layer after compression. Units that are
alike and follow each other become one segment, so that each uniform stretch is one scan.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dit_moe.config import ModelConfig, MoEConfig, SegmentConfig
from dit_moe.models.parameters import abstract_parameters, stack_of

_FIRST = "trunk.segments.0."


class Unit(NamedTuple):
    """What a segment repeats: dense blocks up to and including one MoE block."""

    segment: SegmentConfig
    """That of this unit alone."""
    parameters: dict[str, np.ndarray]
    """By the path within the unit, such as "blocks.0.attention.qkv.kernel"."""

    @property
    def moe(self) -> MoEConfig:
        """The mixture, of a unit that has one."""
        assert self.segment.moe is not None
        return self.segment.moe

    @property
    def mixture(self) -> str:
        """What the paths of the mixture's parameters begin with."""
        return f"blocks.{self.segment.unit - 1}.feed_forward."

    def of(self, moe: MoEConfig, parameters: Mapping[str, np.ndarray]) -> "Unit":
        """The unit with another mixture, of which these are the parameters by their whole paths
        within the unit; all else stays."""
        kept = {k: v for k, v in self.parameters.items() if not k.startswith(self.mixture)}
        return Unit(dataclasses.replace(self.segment, moe=moe), {**kept, **parameters})


def units_of(network: ModelConfig, parameters: Mapping[str, np.ndarray]) -> list[Unit]:
    """The units in order; their arrays are views."""
    return list(_units(network, parameters))


def _units(network: ModelConfig, parameters: Mapping[str, np.ndarray]) -> Iterator[Unit]:
    for number, segment in enumerate(network.trunk):
        prefix = f"trunk.segments.{number}."
        own = {
            path.removeprefix(prefix): value
            for path, value in parameters.items()
            if path.startswith(prefix)
        }
        single = dataclasses.replace(segment, depth=segment.unit)
        for unit in range(segment.repeats):
            yield Unit(single, {name: value[unit] for name, value in own.items()})


def network_of(
    old: ModelConfig,
    parameters: Mapping[str, np.ndarray],
    units: Sequence[Unit],
    looks: Sequence[object] = (),
) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """The network of these units, and its parameters.

    Args:
      old: what is no part of the trunk is as there.
      parameters: of the old network, from which the rest is taken.
      units: as many as the old network has, in order.
      looks: of each unit what else must be equal for neighbours to be one segment; empty: nothing.

    Raises:
      ConfigError: the network allows no such mixture.
    """
    found = {path: value for path, value in parameters.items() if stack_of(path) is None}
    segments = []
    for number, stretch in enumerate(_stretches(units, looks)):
        first = stretch[0].segment
        segments.append(dataclasses.replace(first, depth=first.depth * len(stretch)))
        for name in stretch[0].parameters:
            stack = np.stack([unit.parameters[name] for unit in stretch])
            found[f"trunk.segments.{number}.{name}"] = stack
    if len(segments) == 1 and not old.segments:
        return dataclasses.replace(old, moe=segments[0].moe), found
    return dataclasses.replace(old, moe=None, segments=tuple(segments)), found


def _stretches(units: Sequence[Unit], looks: Sequence[object]) -> list[list[Unit]]:
    """Neighbours that are alike, together."""
    stretches: list[list[Unit]] = []
    last = None
    for number, unit in enumerate(units):
        look = unit.segment, looks[number] if looks else None
        if look == last:
            stretches[-1].append(unit)
        else:
            stretches.append([unit])
        last = look
    return stretches


@functools.lru_cache(maxsize=256)
def unit_shapes(network: ModelConfig, segment: SegmentConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of a unit's parameters by the path within it, in a network like this one.

    Args:
      network: of which the trunk is not looked at.
      segment: of a single unit.
    """
    return {
        path.removeprefix(_FIRST): p.shape[1:]
        for path, p in abstract_parameters(network.with_only(segment)).items()
        if path.startswith(_FIRST)
    }
