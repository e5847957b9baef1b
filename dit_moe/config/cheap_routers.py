"""The settings of the routers that were made for experts that cost next to nothing."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from dit_moe.config.routers import ROUTERS, Chooser, LinearScores, Mixture
from dit_moe.config.rules import RULES, NonNegativeFloat, PositiveInt, require


@ROUTERS.add
@dataclass(frozen=True, config=RULES)
class NullTopKRouterConfig(LinearScores):
    """Softmax token-choice router over true and null experts (AdaMoE, Zeng et al. 2024)."""

    name: Literal["null_top_k"] = "null_top_k"
    balance_coef: NonNegativeFloat = 0.02
    """Factor of the balance loss, while it is tight."""
    loose_balance_coef: NonNegativeFloat = 1e-4
    """The factor after that."""
    tight_updates: PositiveInt | None = None
    """After how many updates the balance loss is loosened: in the paper after one of two epochs;
    none: never, as in the public code. A run that starts from another counts on."""
    balance: Literal["mean_null", "each"] = "mean_null"
    """How null experts count in the balance loss. `mean_null`: as if each had the mean of their
    loads, so that it does not matter which of them a token takes. `each`: by their own, which is
    what the public code for Mixtral does in effect."""
    sum_over: Literal["true", "chosen"] = "true"
    """Over which of a token's experts the weights sum to 1: the true ones that it chose, or all."""

    chooser: ClassVar[Chooser] = "token"
    free: ClassVar[tuple[str, ...]] = (
        "balance_coef",
        "loose_balance_coef",
        "tight_updates",
        "balance",
    )
    fresh_scale: ClassVar[float] = 0.01

    def check(self, moe: Mixture) -> None:
        """All cheap experts are null experts."""
        require(
            set(moe.cheap_experts) <= {"zero"},
            f"cheap_experts is {', '.join(moe.cheap_experts)} with router {self.name!r}, whose "
            "null experts give nothing; allowed: zero alone, such as zero,zero",
        )

    def weight_sum(self, moe: Mixture) -> float:
        """Of equal scores the first are chosen, which are true experts."""
        return 1.0

    def parameters(self, width: int, moe: Mixture) -> int:
        """The matrix and a counter of updates."""
        return super().parameters(width, moe) + 1
