"""Mixtures of experts."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from dit_moe.config.experts import EXPERTS, RECURRENT, ExpertKind, RecurrentKind
from dit_moe.config.routers import ROUTERS, RouterConfig, TopKRouterConfig
from dit_moe.config.rules import (
    RULES,
    Listed,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    require,
)


def _known(name: str, *tables: Mapping[str, object]) -> str:
    if not any(name in table for table in tables):
        allowed = ", ".join(repr(known) for table in tables for known in table)
        raise PydanticCustomError("unknown_expert", "allowed: {allowed}", {"allowed": allowed})
    return name


CHOICES = ("most_likely", "least_likely", "random")
"""How tokens choose, beside `rank_R`, the expert of place R by score."""


def rank_of(choice: str) -> int | None:
    """R of the choice `rank_R`, such as 3 of `rank_3`; None for another one."""
    found = re.fullmatch(r"rank_([1-9]\d{0,5})", choice)
    return int(found[1]) if found else None


ExpertName = Annotated[str, AfterValidator(lambda name: _known(name, EXPERTS))]
"""A name in `EXPERTS`."""
GroupKind = Annotated[str, AfterValidator(lambda name: _known(name, EXPERTS, RECURRENT))]
"""A name in `EXPERTS` or `RECURRENT`."""


@dataclass(frozen=True, config=RULES)
class ExpertGroup:
    """Routed experts that are alike."""

    kind: GroupKind
    """As `MoEConfig.expert`, or recurrent: `gru` runs over an image's tokens in raster order,
    `bigru` in both directions."""
    number: PositiveInt = 1
    hidden_ratio: PositiveFloat = 4.0
    """Hidden width over the model's width; of a recurrent expert, that of one direction's state."""

    @property
    def facts(self) -> ExpertKind | RecurrentKind:
        """Those of the kind."""
        return RECURRENT[self.kind] if self.kind in RECURRENT else EXPERTS[self.kind]


@dataclass(frozen=True, config=RULES)
class MoEConfig:
    """A mixture of experts in place of a block's feed-forward."""

    router: RouterConfig = TopKRouterConfig()
    num_experts: PositiveInt = 8
    """Routed experts; the unconditional expert and the cheap ones are not counted."""
    top_k: PositiveInt = 2
    """Experts of each token. Where experts choose tokens, the mean number of experts of a token
    (the capacity factor of EC-DiT and DiffMoE); 1 where nobody chooses."""
    expert: ExpertName = "swiglu"
    """`swiglu`: gate, up, down without biases. `gelu`: up, down with biases. `silu`: the same with
    another activation."""
    hidden_ratio: PositiveFloat = 4.0
    """Hidden width of a routed expert over the model's width."""
    unlike: tuple[ExpertGroup, ...] = ()
    """Groups of another kind or width among the `num_experts`, the last of them in this order; the
    first ones are as `expert` and `hidden_ratio` say (Hecto)."""
    choose_by: Literal["token", "image"] = "token"
    """Where tokens choose experts: each for itself, or all of an image as one, by their mean."""
    shared_hidden_ratio: NonNegativeFloat = 2.0
    """Hidden width of the shared expert (every token's) over the model's width; 0: none."""
    shared_mix: Literal["sum", "learnt"] = "sum"
    """How the shared expert joins the routed ones (PR-MoE, Rajbhandari et al. 2022). `sum`: as the
    paper has it. `learnt`: c_0 routed + c_1 shared with c = softmax of a linear map of the token,
    half and half at first, as its public code has it."""
    unconditional_expert: bool = False
    """One more expert that takes the tokens of images with the null label, and only those."""
    cheap_experts: Listed[Literal["zero", "copy", "constant"]] = ()
    """Further experts to choose from that cost next to nothing, such as zero,copy,constant: where
    tokens choose, each takes a column of the router's scores (`experts.CHEAP_EXPERTS`)."""
    columns: PositiveInt | None = None
    """Routed experts that the router scores, where compression left fewer: for each column one of
    those that are there stands in, as a parameter of the layer tells (`stand_in`). None: one column
    for each."""
    every: PositiveInt = 1
    """The last of each `every` blocks is MoE: 1 for all blocks, 2 for the odd ones."""
    choice: str = "most_likely"
    """Where tokens choose experts: those with the highest scores. Others are no way to train, but
    the weak networks of self-contrast: with the weights of these, those with the lowest
    (`least_likely`); or with the sum of these weights a single one, that of place R by score
    (`rank_R`, `rank_1` the highest) or one by lot (`random`)."""

    def __post_init__(self) -> None:
        self.router.check(self.as_scored)
        require(
            self.top_k <= self.scored_experts,
            f"top_k is {self.top_k}; allowed: 1 to num_experts ({self.scored_experts})",
        )
        able = " or ".join(repr(name) for name in ROUTERS.names if ROUTERS[name].unconditional)
        require(
            not self.unconditional_expert or self.router.unconditional,
            f"unconditional_expert is true with router {self.router.name!r}; "
            f"allowed: true only with router {able}",
        )
        require(
            self.choice in CHOICES
            or (rank_of(self.choice) or 0) in range(1, self.scored_experts + 1),
            f"choice is {self.choice!r}; allowed: {', '.join(CHOICES)}, or rank_1 to "
            f"rank_{self.scored_experts}",
        )
        require(
            self.choice == "most_likely" or self.tokens_choose,
            f"choice is {self.choice!r} with router {self.router.name!r}, where experts choose "
            "tokens; allowed: 'most_likely'",
        )
        others = sum(group.number for group in self.unlike)
        require(
            others < self.num_experts,
            f"unlike has {others} experts with num_experts {self.num_experts}; allowed: fewer, as "
            "the first are of `expert` and `hidden_ratio`",
        )
        require(
            not self.unlike or self.router.chooser != "nobody",
            f"unlike has {others} experts with router {self.router.name!r}, where experts have "
            "slots of their own; allowed: none, or a router that sends tokens to experts",
        )
        require(
            self.columns is None
            or (self.columns >= self.num_experts and self.tokens_choose and not self.unlike),
            f"columns is {self.columns} with router {self.router.name!r}, num_experts "
            f"{self.num_experts} and {others} experts in unlike; allowed: none, or num_experts or "
            "more where tokens choose among experts that are alike",
        )
        require(
            self.choose_by == "token" or self.tokens_choose,
            f"choose_by is {self.choose_by!r} with router {self.router.name!r}, where experts "
            "choose tokens; allowed: 'token'",
        )
        require(
            self.shared_mix == "sum" or self.shared_hidden_ratio > 0,
            f"shared_mix is {self.shared_mix!r} with shared_hidden_ratio 0; allowed: 'sum', or a "
            "shared expert to mix with",
        )
        require(
            not self.cheap_experts or (self.tokens_choose and not self.router.unconditional),
            f"cheap_experts is {', '.join(self.cheap_experts)} with router {self.router.name!r}; "
            "allowed: with a router of columns of scores from which tokens choose, such as 'top_k'",
        )

    @property
    def tokens_choose(self) -> bool:
        """Every token has top_k experts of its choice."""
        return self.router.chooser == "token"

    @property
    def one_expert(self) -> bool:
        """The choice leaves every token a single expert, whatever `top_k`."""
        return self.choice == "random" or rank_of(self.choice) is not None

    @property
    def scored_experts(self) -> int:
        """The router's columns: routed experts, then cheap ones."""
        return (self.columns or self.num_experts) + len(self.cheap_experts)

    @property
    def as_scored(self) -> "MoEConfig":
        """The mixture as its router sees it: with an expert for every column."""
        if self.columns is None:
            return self
        return dataclasses.replace(self, num_experts=self.columns, columns=None)

    @property
    def groups(self) -> tuple[ExpertGroup, ...]:
        """All routed experts by what they are, in the order of their indices."""
        first = self.num_experts - sum(group.number for group in self.unlike)
        return ExpertGroup(self.expert, first, self.hidden_ratio), *self.unlike

    def computing(self, group: ExpertGroup, tokens: int) -> float:
        """Rows that a group computes for each token of an image that has so many, on average if
        the load is as it should be."""
        if group.facts.whole_images:
            return group.number
        return self.rows(tokens) * group.number / self.num_experts

    def travelling(self, tokens: int) -> float:
        """Rows of an image that are sent to where their expert is."""
        return sum(self.computing(g, tokens) for g in self.groups if not g.facts.whole_images)

    @property
    def total_experts(self) -> int:
        """Experts of the stack: the routed ones and the unconditional one, which comes last."""
        return self.num_experts + self.unconditional_expert

    @property
    def computed_experts(self) -> float:
        """Experts with weights that a token is routed to, on average if the load is as it should
        be."""
        if self.one_expert:
            return 1 - len(self.cheap_experts) / self.scored_experts
        return self.router.computed(self.as_scored)

    def rows(self, tokens: int) -> float:
        """Rows that the experts compute for each token of an image that has so many: as many as
        experts compute it, but where they compute mixes."""
        return (
            self.computed_experts if self.one_expert else self.router.rows(self.as_scored, tokens)
        )
