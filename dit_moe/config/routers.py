"""The settings of every router, with the facts about it that the rest of the package asks for."""

import math
from typing import Annotated, ClassVar, Literal, NamedTuple, Protocol

from pydantic import Field, PlainValidator
from pydantic.dataclasses import dataclass

from dit_moe.config.registry import Registry
from dit_moe.config.rules import RULES, ConfigError, Decay, NonNegativeFloat, PositiveFloat, require

Chooser = Literal["token", "image", "batch", "nobody"]
Gate = Literal["softmax", "sigmoid", "identity"]
"""What makes a score and a weight of a logit. Softmax is over the scored experts."""


class Guess(NamedTuple):
    """What a head of a layer guesses from that the network should predict (`Routing.hidden`)."""

    width: int
    coef: float
    """Factor of the squared error in the loss."""


class Mixture(Protocol):
    """What the facts about a router depend on of its mixture (`MoEConfig`)."""

    @property
    def num_experts(self) -> int:
        """Routed experts."""
        ...

    @property
    def cheap_experts(self) -> tuple[str, ...]:
        """Kinds of the cheap experts."""
        ...

    @property
    def scored_experts(self) -> int:
        """The router's columns: routed experts, then cheap ones."""
        ...

    @property
    def top_k(self) -> int:
        """Experts of each token, on average where experts choose."""
        ...


@dataclass(frozen=True, config=RULES)
class RouterSettings:
    """What all routers have: a name, and facts, none of which has a default.

    A router of the user's own derives from it; see docs/extending.md.
    """

    name: str

    chooser: ClassVar[Chooser]
    """Who chooses: every token its top_k experts; every expert an equal part of each image's
    tokens; or every expert an equal part of the whole batch's, so that images differ; or nobody,
    where experts compute mixes of an image's tokens."""
    unconditional: ClassVar[bool]
    """Whether it can send the tokens of images with the null label to an expert of their own."""
    free: ClassVar[tuple[str, ...]]
    """Fields that change what is learnt, but not what a trained network computes."""
    fresh_scale: ClassVar[float]
    """By what upcycling multiplies its fresh parameters, so that it begins without preference."""

    def weight_sum(self, moe: Mixture) -> float | None:
        """What a token's weights sum to while it has no preference; None: not known beforehand."""
        raise self._untold("its weight_sum")

    def parameters(self, width: int, moe: Mixture) -> int:
        """Numbers of one layer's router."""
        raise self._untold("its parameters")

    def flops(self, width: int, moe: Mixture) -> float:
        """Operations of its matrix products for one token, forward."""
        raise self._untold("its flops")

    def saved(self, width: int, moe: Mixture, *, products_only: bool) -> int:
        """Float32 numbers of a token that its backward pass needs, beside the scores.

        Args:
          width: of the model.
          moe: the mixture.
          products_only: only results of matrix products are kept (`model.remat` is `dots`).
        """
        raise self._untold("what it saves")

    def computed(self, moe: Mixture) -> float:
        """Routed experts that compute a token, on average if the load is as it should be."""
        return moe.top_k * moe.num_experts / moe.scored_experts

    def rows(self, moe: Mixture, tokens: int) -> float:
        """Rows that the experts compute for each of an image's so many tokens."""
        del tokens
        return self.computed(moe)

    def check(self, moe: Mixture) -> None:
        """Raises a `ConfigError` where the settings do not fit the mixture."""
        del moe

    def _untold(self, what: str) -> ConfigError:
        return ConfigError(f"router {self.name!r} does not tell {what}; see docs/extending.md")

    def guess(self, width: int) -> Guess | None:
        """What the block should guess from while it trains, in a model of this width; most routers
        have nothing of the kind."""
        del width
        return None

    def hands_on(self, moe: Mixture) -> dict[str, tuple[int, ...]]:
        """Shapes, for one token, of what the router of the next layer gets to see
        (`Conditioning.previous`); most hand on nothing."""
        del moe
        return {}


def even_weight_sum(gate: Gate, moe: Mixture) -> float | None:
    """What the weights of top_k experts sum to, not renormalised, where all logits are near 0."""
    sums = {"softmax": moe.top_k / moe.scored_experts, "sigmoid": moe.top_k / 2, "identity": None}
    return sums[gate]


ROUTERS = Registry(RouterSettings)
"""By name. The module that each of them stands for is in `moe/routers/`."""
RouterConfig = Annotated[RouterSettings, PlainValidator(ROUTERS.parse)]


@dataclass(frozen=True, config=RULES)
class LogitSettings(RouterSettings):
    """What routers have whose scores are made of unbounded logits."""

    z_coef: NonNegativeFloat = 0.0
    """Factor of the router z-loss, which keeps logits small (ST-MoE; 0.001 there); 0: without."""

    free: ClassVar[tuple[str, ...]] = ("z_coef",)


@dataclass(frozen=True, config=RULES)
class CapacitySettings(RouterSettings):
    """What routers have in which tokens choose: a capacity of the experts in training, if so
    wished."""

    capacity_factor: Annotated[float, Field(ge=1)] | None = None
    """An expert computes at most this many times the assignments that it has where the load is as
    it should be; what is beyond is dropped: of a batch (a part of it, with accumulation) first
    what is not a token's first choice, then tokens by lot (Z-code M3, Kim et al. 2021). Sampling
    drops nothing, since an image would depend on others. None: nothing is dropped."""

    def capacity(self, num_tokens: int, moe: Mixture) -> int | None:
        """Assignments of so many tokens that an expert computes at most; None: any number."""
        if self.capacity_factor is None:
            return None
        even = self.computed(moe) * num_tokens / moe.num_experts
        return math.ceil(self.capacity_factor * even)

    @property
    def draws(self) -> bool:
        """Training draws at random, so that the router keeps a counter."""
        return self.capacity_factor is not None


@dataclass(frozen=True, config=RULES)
class BiasSettings(CapacitySettings):
    """What routers have in which tokens choose: by score plus a bias of each expert, if so wished,
    which follows the load without a gradient. Weights are of the scores alone."""

    bias: Literal["absent", "sign", "share"] = "absent"
    """`sign`: after a step, the bias of every expert with less than the mean load grows by
    `bias_rate`, that of one with more shrinks (Wang et al. 2024, algorithm 1). `share`: it moves by
    `bias_rate` times what an expert's share of the assignments lacks of its due; cheap experts keep
    theirs (LongCat-Flash)."""
    bias_rate: NonNegativeFloat = 0.001
    """0.001 is DeepSeek-V3's, for `sign`."""
    mean_experts: PositiveFloat | None = None
    """Routed experts of a token that `share` aims at where others are cheap; none: as an even load
    over all has it."""

    free: ClassVar[tuple[str, ...]] = ("bias_rate", "mean_experts")

    def parameters(self, width: int, moe: Mixture) -> int:
        """Those beside the gradient, and what else there is."""
        return super().parameters(width, moe) + self.beside(moe)

    def beside(self, moe: Mixture) -> int:
        """Numbers that no gradient moves: biases and the counter of draws."""
        return self.biases(moe) + self.draws

    def biases(self, moe: Mixture) -> int:
        """Numbers of the biases."""
        return 0 if self.bias == "absent" else moe.scored_experts

    def computed(self, moe: Mixture) -> float:
        """What the biases aim at."""
        return super().computed(moe) if self.mean_experts is None else self.mean_experts

    def check(self, moe: Mixture) -> None:
        """A mean can be aimed at where tokens have a choice."""
        if self.mean_experts is None:
            return
        told = f"router.mean_experts is {self.mean_experts}"
        require(
            self.bias == "share",
            f"{told} with router.bias {self.bias!r}; allowed: none, or router.bias 'share'",
        )
        require(
            moe.scored_experts > moe.num_experts,
            f"{told} without cheap experts; allowed: none, as every token has top_k experts",
        )
        require(
            self.mean_experts <= moe.top_k,
            f"{told}; allowed: more than 0, up to top_k ({moe.top_k})",
        )


@dataclass(frozen=True, config=RULES)
class LinearScores(RouterSettings):
    """The facts of a router that scores experts by one matrix [D, E]."""

    unconditional: ClassVar[bool] = False

    def parameters(self, width: int, moe: Mixture) -> int:
        """The matrix."""
        return width * moe.scored_experts

    def flops(self, width: int, moe: Mixture) -> float:
        """One product with the matrix."""
        return 2 * width * moe.scored_experts

    def saved(self, width: int, moe: Mixture, *, products_only: bool) -> int:
        """The token in float32."""
        return 0 if products_only else width


@dataclass(frozen=True, config=RULES)
class GatedSettings(LinearScores, LogitSettings):
    """What routers have whose weights are the gate's values, not renormalised."""

    gate: Gate = "softmax"

    def weight_sum(self, moe: Mixture) -> float | None:
        """The sum over the top_k experts that a token has, on average where experts choose."""
        return even_weight_sum(self.gate, moe)


@ROUTERS.add
@dataclass(frozen=True, config=RULES)
class TopKRouterConfig(BiasSettings, GatedSettings):
    """Token-choice router with a balance loss: DiT-MoE's with softmax, that of BASE and StableMoE
    with sigmoid. Its weights are not renormalised."""

    name: Literal["top_k"] = "top_k"
    balance_coef: NonNegativeFloat = 0.01
    """Factor of the balance loss, whose probabilities are a softmax whatever the gate."""

    chooser: ClassVar[Chooser] = "token"
    free: ClassVar[tuple[str, ...]] = (
        "balance_coef",
        *LogitSettings.free,
        *BiasSettings.free,
    )
    fresh_scale: ClassVar[float] = 0.01


@ROUTERS.add
@dataclass(frozen=True, config=RULES)
class SigmoidTopKRouterConfig(BiasSettings, LinearScores, LogitSettings):
    """Sigmoid token-choice router that is balanced by a bias, without a loss (DSMoE)."""

    name: Literal["sigmoid_top_k"] = "sigmoid_top_k"
    scale: PositiveFloat = 1.0
    """What a token's weights sum to, where top_k is 2 or more (DeepSeek-V3's routed scaling)."""
    bias: Literal["absent", "sign", "share"] = "sign"
    bias_rate: NonNegativeFloat = 0.001
    """With 0, as in DSMoE's public code, the biases stay as they are."""

    chooser: ClassVar[Chooser] = "token"
    free: ClassVar[tuple[str, ...]] = (*BiasSettings.free, *LogitSettings.free)
    fresh_scale: ClassVar[float] = 0.01

    def weight_sum(self, moe: Mixture) -> float:
        """`scale`, or half of it where one expert has the weight of a sigmoid at 0."""
        return self.scale * (1.0 if moe.top_k > 1 else 0.5)


@dataclass(frozen=True, config=RULES)
class PrototypeSettings(RouterSettings):
    """What both forms of ProMoE's two-step router have: learnable prototypes, a routing contrastive
    loss, and an unconditional expert where the mixture has one."""

    activation: Gate = "identity"
    """The gate, of cosines. `softmax` is over the experts where tokens choose, over the tokens of
    an image where experts do."""
    contrastive_coef: NonNegativeFloat = 1.0
    contrastive_temperature: PositiveFloat = 0.07

    unconditional: ClassVar[bool] = True
    free: ClassVar[tuple[str, ...]] = ("contrastive_coef", "contrastive_temperature")
    fresh_scale: ClassVar[float] = 1.0
    """Prototypes are compared by their direction alone."""

    def parameters(self, width: int, moe: Mixture) -> int:
        """The prototypes."""
        return width * moe.scored_experts

    def flops(self, width: int, moe: Mixture) -> float:
        """The cosines."""
        return 2 * width * moe.scored_experts

    def saved(self, width: int, moe: Mixture, *, products_only: bool) -> int:
        """The token in float32, as it is, squared and normalised."""
        return 0 if products_only else 3 * width


@ROUTERS.add
@dataclass(frozen=True, config=RULES)
class PrototypeRouterConfig(BiasSettings, PrototypeSettings):
    """Each token takes its nearest prototypes (ProMoE)."""

    name: Literal["prototype"] = "prototype"

    chooser: ClassVar[Chooser] = "token"
    free: ClassVar[tuple[str, ...]] = (*PrototypeSettings.free, *BiasSettings.free)

    def weight_sum(self, moe: Mixture) -> float | None:
        """The sum where cosines are near 0; cosines themselves sum to nothing that is known."""
        return even_weight_sum(self.activation, moe)


@ROUTERS.add
@dataclass(frozen=True, config=RULES)
class ExpertChoiceRouterConfig(GatedSettings):
    """Each expert takes its top tokens of every image (EC-DiT, with softmax over experts)."""

    name: Literal["expert_choice"] = "expert_choice"

    chooser: ClassVar[Chooser] = "image"
    fresh_scale: ClassVar[float] = 1.0


@ROUTERS.add
@dataclass(frozen=True, config=RULES)
class PrototypeExpertChoiceRouterConfig(PrototypeSettings):
    """Each prototype takes its top tokens of every image (the expert-choice form of ProMoE)."""

    name: Literal["prototype_expert_choice"] = "prototype_expert_choice"

    chooser: ClassVar[Chooser] = "image"

    def weight_sum(self, moe: Mixture) -> None:
        """A softmax over tokens, or cosines of whichever tokens an expert takes."""
        return None


@ROUTERS.add
@dataclass(frozen=True, config=RULES)
class BatchPoolRouterConfig(GatedSettings):
    """In training each expert takes its top tokens of the whole batch; when sampling, a predictor
    of that choice and a threshold per expert decide (DiffMoE)."""

    name: Literal["batch_pool"] = "batch_pool"
    capacity_coef: NonNegativeFloat = 0.01
    """Factor of the predictor's cross-entropy, whose gradient reaches the predictor alone. 0.01
    is the default of the public code; DiffMoE's own config has 1."""
    threshold_decay: Decay = 0.95
    """Per update, of the moving average of each expert's threshold."""
    inference: Literal["token", "batch"] = "token"
    """Which tokens an expert computes when sampling. `token`: those whose own prediction passes its
    threshold, so that an image depends on nothing else. `batch` (the public code): as many as
    pass, but those with the highest scores of the batch."""

    chooser: ClassVar[Chooser] = "batch"
    free: ClassVar[tuple[str, ...]] = (
        "capacity_coef",
        "threshold_decay",
        "inference",
        *LogitSettings.free,
    )
    fresh_scale: ClassVar[float] = 1.0

    def parameters(self, width: int, moe: Mixture) -> int:
        """The matrix, the predictor's two layers with biases, the thresholds."""
        experts = moe.num_experts
        return width * experts + width * (width + 1) + (width + 1) * experts + experts

    def flops(self, width: int, moe: Mixture) -> float:
        """Scores and predictor."""
        return 2 * width * (width + 2 * moe.num_experts)

    def saved(self, width: int, moe: Mixture, *, products_only: bool) -> int:
        """The predictor's layers; without recomputation also what they are made of."""
        return width + moe.num_experts if products_only else 6 * width
