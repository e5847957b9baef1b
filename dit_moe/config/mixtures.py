"""The mixtures of the published models, and of those that they are compared with."""

import dataclasses

from dit_moe.config import (
    BatchPoolRouterConfig,
    CosineRouterConfig,
    ExpertChoiceRouterConfig,
    ExpertGroup,
    ExpertRaceRouterConfig,
    MixedTopKRouterConfig,
    MoEConfig,
    NoisyTopKRouterConfig,
    NullTopKRouterConfig,
    PrototypeExpertChoiceRouterConfig,
    PrototypeRouterConfig,
    RouterConfig,
    SegmentConfig,
    SigmoidTopKRouterConfig,
    SoftRouterConfig,
    TopKRouterConfig,
)

# By the number of experts: how many a token has, and what their weights sum to.
DS_MOE_ROUTING = {16: (2, 2.0), 48: (5, 2.5)}

# The public code has GELU experts with biases where the paper's text says SwiGLU; the published
# parameter counts are those of the code.
PROMOE = MoEConfig(
    router=PrototypeRouterConfig(),
    num_experts=12,
    top_k=1,
    expert="gelu",
    hidden_ratio=2,
    shared_hidden_ratio=2,
    unconditional_expert=True,
    every=2,
)

PROMOE_EC = dataclasses.replace(PROMOE, router=PrototypeExpertChoiceRouterConfig())


def eight_experts(router: RouterConfig) -> MoEConfig:
    """ProMoE's baselines: a dense block's feed-forward eight times, one for a token on average."""
    return MoEConfig(
        router=router,
        num_experts=8,
        top_k=1,
        expert="gelu",
        hidden_ratio=4,
        shared_hidden_ratio=0,
        every=2,
    )


TC_DIT = eight_experts(TopKRouterConfig(balance_coef=0.01))
EC_DIT = eight_experts(ExpertChoiceRouterConfig())
DIFFMOE = eight_experts(BatchPoolRouterConfig())


def eight_halves(router: RouterConfig, top_k: int = 2, zeros: int = 0) -> MoEConfig:
    """Eight experts half as wide, of which a token has two on average."""
    return dataclasses.replace(
        eight_experts(router), top_k=top_k, hidden_ratio=2, cheap_experts=("zero",) * zeros
    )


# Mixtures of other networks' papers, made for the comparison: active are 8 width^2 parameters of
# experts for a token, as in a dense feed-forward, in MoE++ near that.
OF_OTHER_NETWORKS = {
    "Noisy": eight_halves(NoisyTopKRouterConfig()),
    "X-MoE": eight_experts(CosineRouterConfig()),
    "AdaMoE": eight_halves(NullTopKRouterConfig(), top_k=4, zeros=8),
    "MoEPP": dataclasses.replace(
        eight_experts(MixedTopKRouterConfig()),
        top_k=2,
        hidden_ratio=3.25,
        cheap_experts=("zero", "copy", "constant", "constant"),
    ),
    # As many slots as an image of 256 pixels has tokens.
    "Soft": eight_experts(SoftRouterConfig(slots=32)),
}

# Expert Race, table 7: every block has 32 experts a quarter as wide as a dense feed-forward, of
# which a token has 4 on average. Its parameters are counted to 0.3% (2.796 of 2.788 billion).
RACE = MoEConfig(
    router=ExpertRaceRouterConfig(),
    num_experts=32,
    top_k=4,
    expert="gelu",
    hidden_ratio=1,
    shared_hidden_ratio=0,
)


# A feed-forward expert and one that runs over the image, which is sent to either as a whole.
HECTO = dataclasses.replace(
    eight_experts(TopKRouterConfig()),
    num_experts=2,
    unlike=(ExpertGroup("bigru", 1, 0.625),),
    choose_by="image",
)
# Five experts as in tc-dit, two half and one twice as wide.
UNLIKE = dataclasses.replace(
    eight_experts(TopKRouterConfig()),
    unlike=(ExpertGroup("gelu", 2, 2), ExpertGroup("gelu", 1, 8)),
)


def _pr_moe(num_experts: int) -> MoEConfig:
    """PR-MoE's mixture: a fixed feed-forward beside one routed expert of its width."""
    return dataclasses.replace(
        eight_experts(TopKRouterConfig()), num_experts=num_experts, shared_hidden_ratio=4
    )


# PR-MoE-32/64 of 350M, whose depth, width and heads are those of DiT-L: ten MoE layers of 32
# experts, then two of 64.
PR_MOE_SEGMENTS = SegmentConfig(20, _pr_moe(32)), SegmentConfig(4, _pr_moe(64))


def ds_moe(num_experts: int, hidden_ratio: float) -> MoEConfig:
    """DSMoE's mixture, of 16 or 48 experts and a shared one of their width.

    The public code has the bias of DeepSeek-V3, but never moves it: `bias_rate` 0.
    """
    top_k, scale = DS_MOE_ROUTING[num_experts]
    return MoEConfig(
        router=SigmoidTopKRouterConfig(scale=scale, bias_rate=0),
        num_experts=num_experts,
        top_k=top_k,
        hidden_ratio=hidden_ratio,
        shared_hidden_ratio=hidden_ratio,
        every=2,
    )
