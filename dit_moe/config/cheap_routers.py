"""The settings of the routers that were made for experts that cost next to nothing."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from dit_moe.config.routers import (
    ROUTERS,
    BiasSettings,
    Chooser,
    LinearScores,
    LogitSettings,
    Mixture,
)
from dit_moe.config.rules import RULES, NonNegativeFloat, PositiveFloat, PositiveInt, require


@ROUTERS.add
@dataclass(frozen=True, config=RULES)
class NullTopKRouterConfig(BiasSettings, LinearScores, LogitSettings):
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
        *LogitSettings.free,
        *BiasSettings.free,
    )
    fresh_scale: ClassVar[float] = 0.01

    def check(self, moe: Mixture) -> None:
        """All cheap experts are null experts."""
        super().check(moe)
        require(
            set(moe.cheap_experts) <= {"zero"},
            f"cheap_experts is {', '.join(moe.cheap_experts)} with router {self.name!r}, whose "
            "null experts give nothing; allowed: zero alone, such as zero,zero",
        )

    def weight_sum(self, moe: Mixture) -> float:
        """Always 1: among equal scores the first are chosen, which are true experts."""
        return 1.0

    def parameters(self, width: int, moe: Mixture) -> int:
        """The matrix and a counter of updates."""
        return super().parameters(width, moe) + 1


@ROUTERS.add
@dataclass(frozen=True, config=RULES)
class MixedTopKRouterConfig(BiasSettings, LinearScores, LogitSettings):
    """Softmax token-choice router over experts of unlike cost, which sees the logits of the router
    before (MoE++, Jin et al. 2024)."""

    name: Literal["mixed_top_k"] = "mixed_top_k"
    balance_coef: NonNegativeFloat = 0.01
    """Factor of the balance loss, which has no factor of its own for the number of experts."""
    tau: PositiveFloat = 0.75
    """Weight of cheap experts in the balance loss, where the others have 1: below 1 it lets cheap
    ones have more tokens."""
    weights: Literal["softmax", "non_zero"] = "softmax"
    """`softmax`: the probabilities of the chosen. `non_zero`, the public code's: those of the
    chosen without the zero experts, renormalised."""
    scores: Literal["linear", "two_layers"] = "linear"
    """Logits by one matrix, or by two with tanh between them, eight times as wide as there are
    experts (the public code's)."""
    gating_residual: bool = True
    """The router of the layer before hands on its logits, and a matrix of them is added."""

    chooser: ClassVar[Chooser] = "token"
    free: ClassVar[tuple[str, ...]] = (
        "balance_coef",
        "tau",
        *LogitSettings.free,
        *BiasSettings.free,
    )
    fresh_scale: ClassVar[float] = 0.01

    def weight_sum(self, moe: Mixture) -> float:
        """top_k of E equal probabilities, or 1: of these the first are chosen, which are no
        zeros."""
        return 1.0 if self.weights == "non_zero" else moe.top_k / moe.scored_experts

    def computed(self, moe: Mixture) -> float:
        """Where the balance loss is least, tau n of n routed experts to m cheap ones, or what the
        biases aim at."""
        if self.mean_experts is not None:
            return super().computed(moe)
        weighted = self.tau * moe.num_experts
        return moe.top_k * weighted / (weighted + moe.scored_experts - moe.num_experts)

    def parameters(self, width: int, moe: Mixture) -> int:
        """The matrices, and what no gradient moves."""
        return self._entries(width, moe) + self.beside(moe)

    def flops(self, width: int, moe: Mixture) -> float:
        """One product with each matrix."""
        return 2 * self._entries(width, moe)

    def saved(self, width: int, moe: Mixture, *, products_only: bool) -> int:
        """The hidden layer and what the router before has handed on. Where products are kept, also
        what was made of the latter; else the token in float32 and tanh with its slope."""
        *inner, _ = self.own_matrices(width, moe)
        hidden = sum(b for _, b in inner)
        handed = moe.scored_experts * self.gating_residual
        return hidden + 2 * handed if products_only else width + 2 * hidden + handed

    def _entries(self, width: int, moe: Mixture) -> int:
        return sum(a * b for a, b in self.matrices(width, moe))

    def own_matrices(self, width: int, moe: Mixture) -> list[tuple[int, int]]:
        """Rows and columns of what makes logits of a token, in their order."""
        e = moe.scored_experts
        return [(width, 8 * e), (8 * e, e)] if self.scores == "two_layers" else [(width, e)]

    def matrices(self, width: int, moe: Mixture) -> list[tuple[int, int]]:
        """Rows and columns of all matrices; that of the logits before is the last."""
        residual = [(moe.scored_experts, moe.scored_experts)] * self.gating_residual
        return self.own_matrices(width, moe) + residual

    def hands_on(self, moe: Mixture) -> dict[str, tuple[int, ...]]:
        """The logits, which hold those before in turn."""
        return {"logits": (moe.scored_experts,)} if self.gating_residual else {}
