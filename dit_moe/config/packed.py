"""Matrices that are kept as integers of few bits."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from dit_moe.config.rules import RULES, Listed, PositiveInt, require

BITS = range(2, 9)
"""How many a weight may have."""


@dataclass(frozen=True, config=RULES)
class PackedConfig:
    """Matrices that are alike in how they are packed (`nn/packed.py`)."""

    patterns: Listed[str]
    """Which, by patterns of their dotted paths, such as *.experts.w_in; * stands for any text. Each
    matches the matrix of a linear layer or of experts, one that no other pattern matches."""
    bits: Annotated[PositiveInt, Field(ge=BITS[0], le=BITS[-1])] = 8
    """Bits of a weight."""
    group: PositiveInt = 64
    """Inputs, one after another, that share a scale and a zero for each output; the last ones of a
    matrix may be fewer."""

    def __post_init__(self) -> None:
        require(bool(self.patterns), "patterns is empty; allowed: one pattern or more")
