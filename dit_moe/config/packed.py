"""Matrices that are kept as integers of few bits."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from dit_moe.config.rules import RULES, Listed, PositiveInt, listing, require

BITS = range(2, 9)
"""How many a weight may have."""
Nested = Literal["top_bits", "planes"]
"""How fewer bits may be taken of a matrix; see `PackedConfig.nested`."""


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

    nested: Nested | None = None
    """How a reader may take fewer bits. `top_bits`: the highest bits of each code, rounded
    (MatQuant). `planes`: the matrix has `least` bits, and each further one is a plane of signs with
    scales of its own, of which the last ones are left out (D2MoE). None: it may not."""
    least: Annotated[PositiveInt, Field(ge=BITS[0], le=BITS[-1])] | None = None
    """As few bits as a reader may take, where it may take fewer."""

    def __post_init__(self) -> None:
        require(bool(self.patterns), "patterns is empty; allowed: one pattern or more")
        require(
            (self.nested is None) == (self.least is None),
            f"least is {self.least} with nested {self.nested}; allowed: both or neither",
        )
        require(
            self.nested is None or (self.fewest <= self.bits and not self.experts),
            f"least is {self.least} with bits {self.bits} and bits of {len(self.experts)} experts; "
            "allowed: at most bits, the same of all experts",
        )
        falling = sorted(self.experts, reverse=True)
        require(
            not self.experts or (list(self.experts) == falling and self.experts[0] == self.bits),
            f"experts is {listing(self.experts)} with bits {self.bits}; allowed: bits that fall "
            "from expert to expert, the first of them as `bits`",
        )

    @property
    def fewest(self) -> int:
        """As few bits as a reader may take."""
        return self.bits if self.least is None else self.least

    @property
    def has_planes(self) -> bool:
        """Whether its matrices are stored with planes of signs."""
        return self.nested == "planes" and self.fewest < self.bits

    @property
    def widths(self) -> tuple[int, ...]:
        """All numbers of bits that a matrix of it may have, ascending."""
        return tuple(sorted({self.bits, *self.experts}))
