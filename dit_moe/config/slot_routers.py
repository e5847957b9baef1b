"""The settings of the router that sends no token anywhere: experts compute mixes of them."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from dit_moe.config.routers import ROUTERS, Chooser, Mixture, RouterSettings
from dit_moe.config.rules import RULES, PositiveInt, require


@ROUTERS.add
@dataclass(frozen=True, config=RULES)
class SoftRouterConfig(RouterSettings):
    """Every slot of an expert gets a mix of an image's tokens, and every token a mix of what comes
    out of all slots (SoftMoE, Puigcerver et al. 2023). All is dense: there is nothing to balance,
    and nothing to drop."""

    name: Literal["soft"] = "soft"
    slots: PositiveInt = 1
    """Slots of each expert in an image. With `num_experts` x `slots` as many as an image has
    tokens, the experts compute as much as one of them computes where tokens choose."""

    chooser: ClassVar[Chooser] = "nobody"
    unconditional: ClassVar[bool] = False
    free: ClassVar[tuple[str, ...]] = ()
    fresh_scale: ClassVar[float] = 1.0
    """Slots are compared by their direction alone."""

    def check(self, moe: Mixture) -> None:
        """`top_k` has nothing to say."""
        require(
            moe.top_k == 1,
            f"top_k is {moe.top_k} with router 'soft', whose experts compute as many rows of an "
            "image as router.slots says; allowed: 1",
        )

    def all_slots(self, moe: Mixture) -> int:
        """P, the slots of an image."""
        return moe.num_experts * self.slots

    def weight_sum(self, moe: Mixture) -> None:
        """The weights sum to 1, but no expert sees a token by itself."""
        return None

    def parameters(self, width: int, moe: Mixture) -> int:
        """A vector of each slot, and the scale."""
        return width * self.all_slots(moe) + 1

    def flops(self, width: int, moe: Mixture) -> float:
        """The cosines, the mixes that go into the slots, and those that come out."""
        return 3 * 2 * width * self.all_slots(moe)

    def saved(self, width: int, moe: Mixture, *, products_only: bool) -> int:
        """The cosines, of which the scores are sums; without recomputation also what is made of
        them on the way to both softmaxes, the token, squared and normalised, and as it is mixed."""
        slots = self.all_slots(moe) - moe.scored_experts
        return slots if products_only else slots + 4 * self.all_slots(moe) + 4 * width

    def rows(self, moe: Mixture, tokens: int) -> float:
        """The slots of an image over its tokens."""
        return self.all_slots(moe) / tokens
