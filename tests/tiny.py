"""A model small enough to train in a test."""

import dataclasses

from dit_moe.config import (
    BatchPoolRouterConfig,
    Config,
    ExpertChoiceRouterConfig,
    ExpertGroup,
    ExpertRaceRouterConfig,
    MeshConfig,
    MixedTopKRouterConfig,
    ModelConfig,
    MoEConfig,
    NullTopKRouterConfig,
    PregateConfig,
    PrototypeExpertChoiceRouterConfig,
    PrototypeRouterConfig,
    SegmentConfig,
    SoftRouterConfig,
    TopKRouterConfig,
    TrainConfig,
)

PROMOE = MoEConfig(
    router=PrototypeRouterConfig(),
    num_experts=4,
    top_k=1,
    expert="gelu",
    hidden_ratio=1,
    shared_hidden_ratio=1,
    unconditional_expert=True,
    every=2,
)
PROMOE_EC = dataclasses.replace(PROMOE, router=PrototypeExpertChoiceRouterConfig())
DIT_MOE = MoEConfig(num_experts=4, top_k=2, hidden_ratio=1, shared_hidden_ratio=1)
EC_DIT = dataclasses.replace(
    PROMOE, router=ExpertChoiceRouterConfig(), unconditional_expert=False, shared_hidden_ratio=0
)
DIFFMOE = dataclasses.replace(EC_DIT, router=BatchPoolRouterConfig())
ADAMOE = dataclasses.replace(
    DIT_MOE,
    router=NullTopKRouterConfig(balance_coef=0.5, loose_balance_coef=0.125, tight_updates=2),
    top_k=3,
    cheap_experts=("zero",) * 4,
)
RACE = dataclasses.replace(
    EC_DIT, router=ExpertRaceRouterConfig(similarity_coef=0.1, guess_coef=0.5), every=1
)
SOFT_MOE = dataclasses.replace(EC_DIT, router=SoftRouterConfig(slots=4))
MOE_PLUS_PLUS = dataclasses.replace(
    DIT_MOE,
    router=MixedTopKRouterConfig(),
    cheap_experts=("zero", "copy", "constant", "constant"),
)


# Hecto's: a feed-forward and a recurrent expert, one of them for an image.
HECTO = dataclasses.replace(
    PROMOE,
    router=TopKRouterConfig(),
    num_experts=2,
    shared_hidden_ratio=0,
    unconditional_expert=False,
    unlike=(ExpertGroup("bigru", 1, 0.5),),
    choose_by="image",
)
UNLIKE = dataclasses.replace(
    DIT_MOE,
    num_experts=6,
    top_k=3,
    unlike=(ExpertGroup("gelu", 2, 2.0), ExpertGroup("gru", 2, 0.5)),
)
# PR-MoE's: more experts in later layers, each beside a fixed one, with learnt shares.
PYRAMID = tuple(
    SegmentConfig(1, dataclasses.replace(DIT_MOE, num_experts=n, top_k=1, shared_mix="learnt"))
    for n in (2, 4)
)


# Read-ME's: a token has one expert, with weight 1.
PREGATED = dataclasses.replace(DIT_MOE, router=NullTopKRouterConfig(), top_k=1, expert="gelu")


def pregated(moe: MoEConfig, **train: object) -> Config:
    """The config of `tiny` with a router before the trunk."""
    config = tiny(moe, **train)
    model = dataclasses.replace(config.model, pregate=PregateConfig(heads=2))
    return dataclasses.replace(config, model=model)


def in_segments(*mixtures: MoEConfig) -> tuple[SegmentConfig, ...]:
    """A block with each of these, one after another."""
    return tuple(SegmentConfig(1, dataclasses.replace(moe, every=1)) for moe in mixtures)


def tiny(moe: MoEConfig | tuple[SegmentConfig, ...] | None = PROMOE, **train: object) -> Config:
    """A config of two blocks with this mixture in them, or of the blocks of these segments."""
    settings = {
        "steps": 6,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "gradient_clip": 1.0,
        "ema_decay": 0.9,
        "ema_warmup": False,
        "log_every": 2,
        "checkpoint_every": 100,
        "sample_every": 0,
        "validate_every": 0,
    }
    return Config(
        name="tiny",
        model=ModelConfig(
            image_size=8,
            channels=1,
            num_classes=10,
            width=16,
            depth=sum(segment.depth for segment in moe) if isinstance(moe, tuple) else 2,
            heads=2,
            moe=None if isinstance(moe, tuple) else moe,
            segments=moe if isinstance(moe, tuple) else (),
        ),
        train=TrainConfig(**{**settings, **train}),
        mesh=MeshConfig(data=1, fsdp=-1),
    )
