"""The settings of further routers in which tokens choose: noisy top-k and low-rank cosines."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from dit_moe.config.routers import (
    ROUTERS,
    BiasSettings,
    Chooser,
    Gate,
    GatedSettings,
    LinearScores,
    LogitSettings,
    Mixture,
    even_weight_sum,
)
from dit_moe.config.rules import RULES, NonNegativeFloat, PositiveFloat, PositiveInt


@ROUTERS.add
@dataclass(frozen=True, config=RULES)
class NoisyTopKRouterConfig(BiasSettings, LinearScores, LogitSettings):
    """Token-choice router whose logits get learnt noise in training; the gate sees the chosen ones
    alone (Shazeer et al. 2017, GShard)."""

    name: Literal["noisy_top_k"] = "noisy_top_k"
    gate: Gate = "softmax"
    """What makes weights of the chosen logits. `softmax` is over these, so that a token's weights
    sum to 1; with top_k 1 the weight is 1 and the diffusion loss does not train the router."""
    balance_coef: NonNegativeFloat = 0.01

    chooser: ClassVar[Chooser] = "token"
    free: ClassVar[tuple[str, ...]] = (
        "balance_coef",
        *LogitSettings.free,
        *BiasSettings.free,
    )
    fresh_scale: ClassVar[float] = 0.01

    def weight_sum(self, moe: Mixture) -> float | None:
        """1 for softmax over the chosen."""
        return 1.0 if self.gate == "softmax" else even_weight_sum(self.gate, moe)

    def parameters(self, width: int, moe: Mixture) -> int:
        """The matrix of the noise, too."""
        return super().parameters(width, moe) + width * moe.scored_experts

    @property
    def draws(self) -> bool:
        """The noise."""
        return True

    def flops(self, width: int, moe: Mixture) -> float:
        """Two products; sampling has no noise, and so but one of them."""
        return 4 * width * moe.scored_experts

    def saved(self, width: int, moe: Mixture, *, products_only: bool) -> int:
        """The logits of the noise; without recomputation also the token and the draws."""
        return moe.scored_experts + (0 if products_only else width + moe.scored_experts)


@ROUTERS.add
@dataclass(frozen=True, config=RULES)
class CosineRouterConfig(BiasSettings, GatedSettings):
    """Token-choice router by cosines in a space of low rank, with a learnt temperature (X-MoE)."""

    name: Literal["cosine"] = "cosine"
    rank: PositiveInt = 256
    """Width of the space; 256 as in Tutel's code, of which are the other numbers, too."""
    initial_scale: PositiveFloat = 2.0
    """What the cosines are multiplied by at first: one over the temperature."""
    largest_scale: PositiveFloat = 100.0
    """The learnt scale goes no higher."""
    balance_coef: NonNegativeFloat = 0.01

    chooser: ClassVar[Chooser] = "token"
    # How large the scale was at first is not what a trained network computes.
    free: ClassVar[tuple[str, ...]] = (
        "initial_scale",
        "balance_coef",
        *LogitSettings.free,
        *BiasSettings.free,
    )
    fresh_scale: ClassVar[float] = 0.01
    """Vectors are compared by their direction alone; the scale comes near 1."""

    def parameters(self, width: int, moe: Mixture) -> int:
        """The projection with a bias, a vector of each expert, the scale."""
        projection, vectors = (width + 1) * self.rank, self.rank * moe.scored_experts
        return projection + vectors + 1 + self.beside(moe)

    def flops(self, width: int, moe: Mixture) -> float:
        """The projection and the cosines."""
        return 2 * self.rank * (width + moe.scored_experts)

    def saved(self, width: int, moe: Mixture, *, products_only: bool) -> int:
        """The projected token and its cosines; without recomputation the token, too, and what the
        norm is made of."""
        products = self.rank + moe.scored_experts
        return products if products_only else products + width + 2 * self.rank
