"""Matrices that are kept as integers of few bits."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from dit_moe.config.rules import RULES, Listed, PositiveInt, listing, require

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

    experts: Listed[Annotated[PositiveInt, Field(ge=BITS[0], le=BITS[-1])]] = ()
    """Bits of a stack's experts one by one, the most first, which `bits` repeats; which expert has
    which a parameter tells (`place`). Empty: all have `bits`."""

    def __post_init__(self) -> None:
        require(bool(self.patterns), "patterns is empty; allowed: one pattern or more")
        falling = sorted(self.experts, reverse=True)
        require(
            not self.experts or (list(self.experts) == falling and self.experts[0] == self.bits),
            f"experts is {listing(self.experts)} with bits {self.bits}; allowed: bits that fall "
            "from expert to expert, the first of them as `bits`",
        )

    @property
    def widths(self) -> tuple[int, ...]:
        """All numbers of bits that a matrix of it may have, ascending."""
        return tuple(sorted({self.bits, *self.experts}))
