"""Low-rank additions to a network that stays as it is."""

from pydantic.dataclasses import dataclass

from dit_moe.config.rules import RULES, Listed, PositiveFloat, PositiveInt, require


@dataclass(frozen=True, config=RULES)
class LowRankConfig:
    """Additions of low rank to some matrices (LoRA, Hu et al. 2021): W + (alpha / rank) a b.

    a [D, rank] and b [rank, G] learn in place of W [D, G]; b is 0 at first. A stack of experts has
    a pair for each of them.
    """

    rank: PositiveInt = 8
    alpha: PositiveFloat = 8.0
    patterns: Listed[str] = ("*.attention.*",)
    """Whose matrices get additions, by patterns of their dotted paths (parameters.txt), such as
    *.attention.*,*.experts.*; * stands for any text. What is no matrix is passed over."""
    whole: Listed[str] = ()
    """What learns beside them as it is, such as label.table for other classes."""

    def __post_init__(self) -> None:
        require(bool(self.patterns), "patterns is empty; allowed: one pattern or more")
