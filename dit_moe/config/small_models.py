"""Small models of every architecture, for data sets that train in minutes."""

import dataclasses
from typing import Any

from dit_moe.config import (
    ConfigError,
    CosineRouterConfig,
    ExpertRaceRouterConfig,
    MixedTopKRouterConfig,
    ModelConfig,
    MoEConfig,
    NoisyTopKRouterConfig,
    NullTopKRouterConfig,
    PregateConfig,
    SegmentConfig,
    SigmoidTopKRouterConfig,
    SoftRouterConfig,
    TopKRouterConfig,
    TrainConfig,
)
from dit_moe.config.mixtures import (
    DIFFMOE,
    EC_DIT,
    HECTO,
    PROMOE,
    PROMOE_EC,
    TC_DIT,
    UNLIKE,
    eight_experts,
    eight_halves,
)

_SMALL_DIT_MOE = MoEConfig(
    router=TopKRouterConfig(),
    num_experts=8,
    top_k=2,
    hidden_ratio=1,
    shared_hidden_ratio=1,
)
# PR-MoE (Rajbhandari et al. 2022): a fixed feed-forward beside one routed expert of its width.
_PYRAMID = dataclasses.replace(
    eight_experts(TopKRouterConfig()), hidden_ratio=2, shared_hidden_ratio=2
)
# For data sets that train in minutes. Active feed-forward parameters per token: 9 width^2 in
# dit-moe and ds-moe, and in adamoe and moe-plus-plus on average of the load that they aim at;
# 8 width^2 in the others (to which diffmoe's predictor adds width^2), but for hecto, whose
# recurrent expert computes all tokens: 11 width^2.
_SMALL_MOE = {
    "promoe": dataclasses.replace(PROMOE, num_experts=8),
    "promoe-ec": dataclasses.replace(PROMOE_EC, num_experts=8),
    "tc-dit": TC_DIT,
    "tc-sigmoid": eight_experts(TopKRouterConfig(gate="sigmoid")),
    "tc-bias": eight_experts(TopKRouterConfig(balance_coef=0, bias="sign")),
    "tc-noisy": dataclasses.replace(
        eight_experts(NoisyTopKRouterConfig()), top_k=2, hidden_ratio=2
    ),
    "tc-capacity": eight_experts(TopKRouterConfig(capacity_factor=1.25)),
    "x-moe": eight_experts(CosineRouterConfig(rank=64)),
    "soft-moe": eight_experts(SoftRouterConfig(slots=2)),
    "expert-race": eight_halves(ExpertRaceRouterConfig()),
    "ec-dit": EC_DIT,
    "diffmoe": DIFFMOE,
    "dit-moe": _SMALL_DIT_MOE,
    # The loss is loosened after half of the updates that configs/digits.py makes.
    "adamoe": dataclasses.replace(
        _SMALL_DIT_MOE,
        router=NullTopKRouterConfig(tight_updates=600),
        top_k=4,
        cheap_experts=("zero",) * 8,
    ),
    "moe-plus-plus": MoEConfig(
        router=MixedTopKRouterConfig(),
        num_experts=8,
        top_k=2,
        hidden_ratio=2.5,
        shared_hidden_ratio=0,
        cheap_experts=("zero", "copy", "constant", "constant"),
    ),
    "hecto": HECTO,
    "unlike": UNLIKE,
    "pyramid": _PYRAMID,
    "pyramid-mix": dataclasses.replace(_PYRAMID, shared_mix="learnt"),
    "pre-gated": eight_experts(TopKRouterConfig()),
    "ds-moe": MoEConfig(
        router=SigmoidTopKRouterConfig(),
        num_experts=8,
        top_k=2,
        hidden_ratio=1,
        shared_hidden_ratio=1,
        every=2,
    ),
    "dit": None,
}
_PYRAMIDS = ("pyramid", "pyramid-mix")
_PREGATED = ("pre-gated",)


def small_moe(architecture: str, tokens: int = 16) -> MoEConfig | None:
    """The mixture of a small model, for config files, by architecture; "dit" has none.

    Args:
      architecture: its name.
      tokens: of an image, and so nearly its slots where experts compute mixes.

    Raises:
      ConfigError: for another name.
    """
    if architecture not in _SMALL_MOE:
        raise ConfigError(f"architecture is {architecture!r}; allowed: {', '.join(_SMALL_MOE)}")
    moe = _SMALL_MOE[architecture]
    if moe is not None and isinstance(moe.router, SoftRouterConfig):
        slots = SoftRouterConfig(slots=tokens // moe.num_experts)
        return dataclasses.replace(moe, router=slots)
    return moe


def small_model(architecture: str, **fields: Any) -> ModelConfig:
    """A small model, for config files: of width 128 and with the architecture's mixture.

    In a pyramid the last MoE layer has twice as many experts as the others. With a router before
    the trunk, that has a block of one head, a quarter of the width.

    Args:
      architecture: its name.
      fields: more of the `ModelConfig`: the image, its patches and classes, and the depth.

    Raises:
      ConfigError: see `small_moe`.
    """
    dense = ModelConfig(width=128, heads=4, **fields)
    moe = small_moe(architecture, dense.num_tokens)
    if architecture in _PREGATED:
        return dataclasses.replace(dense, moe=moe, pregate=PregateConfig(heads=1))
    if moe is None or architecture not in _PYRAMIDS:
        return dataclasses.replace(dense, moe=moe)
    top = dataclasses.replace(moe, num_experts=2 * moe.num_experts)
    segments = SegmentConfig(dense.depth - moe.every, moe), SegmentConfig(moe.every, top)
    return dataclasses.replace(dense, segments=segments)


def small_training(steps: int, *, batch_size: int, warmup_steps: int) -> TrainConfig:
    """How such a model is trained, for config files; a checkpoint and samples after each quarter.

    The average forgets fast and begins at once, as in all figures of the docs.
    """
    return TrainConfig(
        steps=steps,
        batch_size=batch_size,
        learning_rate=1e-3,
        warmup_steps=warmup_steps,
        schedule="cosine",
        gradient_clip=1.0,
        ema_decay=0.995,
        ema_warmup=False,
        log_every=50,
        checkpoint_every=steps // 4,
        sample_every=steps // 4,
    )
