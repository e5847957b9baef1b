"""The settings of the router in which all pairs of tokens and experts of a batch race."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from dit_moe.config.routers import (
    ROUTERS,
    Chooser,
    Gate,
    GatedSettings,
    Guess,
    LogitSettings,
    Mixture,
)
from dit_moe.config.rules import RULES, Decay, NonNegativeFloat


@ROUTERS.add
@dataclass(frozen=True, config=RULES)
class ExpertRaceRouterConfig(GatedSettings):
    """In training the highest scores of all pairs of a token and an expert in the batch, `top_k`
    for a token on average; when sampling, those above a threshold (Expert Race, Yuan et al. 2025).

    The factors of both losses are our own, as we do not know the paper's.
    """

    name: Literal["expert_race"] = "expert_race"
    gate: Gate = "identity"
    """What the pairs race by, which is also the weight. Softmax compares the experts of a token
    before tokens race."""
    similarity_coef: NonNegativeFloat = 1e-4
    """Factor of the router similarity loss, by which experts have unlike tokens."""
    guess_coef: NonNegativeFloat = 0.01
    """Factor of the per-layer regularisation: the squared error, in every MoE layer, of what a head
    on the router's hidden layer guesses that the network should predict."""
    threshold_decay: Decay = 0.95
    """Per update, of the moving average of the lowest score that training serves."""

    chooser: ClassVar[Chooser] = "batch"
    free: ClassVar[tuple[str, ...]] = (
        "similarity_coef",
        "guess_coef",
        "threshold_decay",
        *LogitSettings.free,
    )
    fresh_scale: ClassVar[float] = 0.01

    def guess(self, width: int) -> Guess:
        """From the hidden layer."""
        return Guess(width, self.guess_coef)

    def parameters(self, width: int, moe: Mixture) -> int:
        """The hidden layer with a bias, the matrix, the threshold; the head is the block's."""
        return width * (width + 1) + width * moe.num_experts + 1

    def flops(self, width: int, moe: Mixture) -> float:
        """The hidden layer and the scores."""
        return 2 * width * (width + moe.num_experts)

    def saved(self, width: int, moe: Mixture, *, products_only: bool) -> int:
        """The hidden layer; without recomputation, to a twentieth of a layer, also the token, what
        GELU is made of, and masks of rows that no other layer has."""
        return width if products_only else int((7.2 + 0.6 * moe.top_k) * width)
