"""Mixtures of experts and their routers."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from dit_moe.config.rules import RULES, Decay, NonNegativeFloat, PositiveFloat, PositiveInt, require


@dataclass(frozen=True, config=RULES)
class TopKRouterConfig:
    """Softmax token-choice router with a balance loss (DiT-MoE)."""

    name: Literal["top_k"] = "top_k"
    balance_coef: NonNegativeFloat = 0.01


@dataclass(frozen=True, config=RULES)
class SigmoidTopKRouterConfig:
    """Sigmoid token-choice router that is balanced by a bias, without a loss (DSMoE)."""

    name: Literal["sigmoid_top_k"] = "sigmoid_top_k"
    scale: PositiveFloat = 1.0
    """What a token's weights sum to, where top_k is 2 or more (DeepSeek-V3's routed scaling)."""
    bias_rate: NonNegativeFloat = 0.001
    """How far a step moves each expert's bias. 0.001 is DeepSeek-V3's; with 0, as in DSMoE's public
    code, the biases stay as they are."""


@dataclass(frozen=True, config=RULES)
class PrototypeSettings:
    """What both forms of ProMoE's two-step router have: learnable prototypes, a routing contrastive
    loss, and an unconditional expert where the mixture has one."""

    activation: Literal["identity", "softmax", "sigmoid"] = "identity"
    """Of the cosines. `softmax` is over the experts where tokens choose, over the tokens of an
    image where experts do."""
    contrastive_coef: NonNegativeFloat = 1.0
    contrastive_temperature: PositiveFloat = 0.07


@dataclass(frozen=True, config=RULES)
class PrototypeRouterConfig(PrototypeSettings):
    """Each token takes its nearest prototypes (ProMoE)."""

    name: Literal["prototype"] = "prototype"


@dataclass(frozen=True, config=RULES)
class ExpertChoiceRouterConfig:
    """Each expert takes its top tokens of every image, by softmax over experts (EC-DiT)."""

    name: Literal["expert_choice"] = "expert_choice"


@dataclass(frozen=True, config=RULES)
class PrototypeExpertChoiceRouterConfig(PrototypeSettings):
    """Each prototype takes its top tokens of every image (the expert-choice form of ProMoE)."""

    name: Literal["prototype_expert_choice"] = "prototype_expert_choice"


@dataclass(frozen=True, config=RULES)
class BatchPoolRouterConfig:
    """In training each expert takes its top tokens of the whole batch; when sampling, a predictor
    of that choice and a threshold per expert decide (DiffMoE)."""

    name: Literal["batch_pool"] = "batch_pool"
    capacity_coef: NonNegativeFloat = 0.01
    """Of the predictor's cross-entropy, whose gradient reaches nothing but the predictor. 0.01 is
    the default of the public code; DiffMoE's own config has 1."""
    threshold_decay: Decay = 0.95
    """Per update, of the moving average of each expert's threshold."""
    inference: Literal["token", "batch"] = "token"
    """Which tokens an expert computes when sampling. `token`: those whose own prediction passes its
    threshold, so that an image depends on nothing else. `batch` (the public code): as many as
    pass, but those with the highest scores of the batch."""


RouterConfig = Annotated[
    TopKRouterConfig
    | SigmoidTopKRouterConfig
    | PrototypeRouterConfig
    | ExpertChoiceRouterConfig
    | PrototypeExpertChoiceRouterConfig
    | BatchPoolRouterConfig,
    Field(discriminator="name"),
]


@dataclass(frozen=True, config=RULES)
class MoEConfig:
    """A mixture of experts in place of a block's feed-forward."""

    router: RouterConfig = TopKRouterConfig()
    num_experts: PositiveInt = 8
    """Routed experts; the unconditional expert is not counted."""
    top_k: PositiveInt = 2
    """Experts of each token. Where experts choose tokens, the mean number of experts of a token
    (the capacity factor of EC-DiT and DiffMoE)."""
    expert: Literal["swiglu", "gelu"] = "swiglu"
    """`swiglu`: gate, up, down without biases. `gelu`: up, down with biases."""
    hidden_ratio: PositiveFloat = 4.0
    """Hidden width of a routed expert over the model's width."""
    shared_hidden_ratio: NonNegativeFloat = 2.0
    """Hidden width of the shared expert (every token's) over the model's width; 0: none."""
    unconditional_expert: bool = False
    """One more expert that takes the tokens of images with the null label, and only those."""
    every: PositiveInt = 1
    """The last of each `every` blocks is MoE: 1 for all blocks, 2 for the odd ones."""
    choice: Literal["most_likely", "least_likely"] = "most_likely"
    """Where tokens choose experts: those with the highest scores, or, with the weights of these,
    those with the lowest. The latter is no way to train, but the weak network of self-contrast."""

    def __post_init__(self) -> None:
        require(
            self.top_k <= self.num_experts,
            f"top_k is {self.top_k}; allowed: 1 to num_experts ({self.num_experts})",
        )
        require(
            not self.unconditional_expert or isinstance(self.router, PrototypeSettings),
            f"unconditional_expert is true with router {self.router.name!r}; "
            "allowed: true only with router 'prototype' or 'prototype_expert_choice'",
        )
        require(
            self.choice == "most_likely" or self.tokens_choose,
            f"choice is {self.choice!r} with router {self.router.name!r}, where experts choose "
            "tokens; allowed: 'most_likely'",
        )

    @property
    def tokens_choose(self) -> bool:
        """Every token has top_k experts of its choice."""
        return self.router.name in ("top_k", "sigmoid_top_k", "prototype")

    @property
    def total_experts(self) -> int:
        """Routed experts and the unconditional one, which comes last."""
        return self.num_experts + self.unconditional_expert
