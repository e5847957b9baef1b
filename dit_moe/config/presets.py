"""The published models by name: "DiT-XL/2", "DiT-MoE-S/2-8E2A", "ProMoE-B/2", "EC-DiT-L/2-E8",
"DSMoE-S/2-E16".

Each preset is a whole experiment: network, objective, optimiser and sampler of its paper, on
ImageNet latents of the f8 autoencoder.
"""

import dataclasses
from typing import Literal

from dit_moe.config import (
    BatchPoolRouterConfig,
    Config,
    ConfigError,
    CosineRouterConfig,
    DataConfig,
    DDPMConfig,
    ExpertChoiceRouterConfig,
    ExpertGroup,
    ExpertRaceRouterConfig,
    GuidanceConfig,
    MixedTopKRouterConfig,
    ModelConfig,
    MoEConfig,
    NoisyTopKRouterConfig,
    NullTopKRouterConfig,
    ObjectiveConfig,
    PregateConfig,
    PrototypeExpertChoiceRouterConfig,
    PrototypeRouterConfig,
    RectifiedFlowConfig,
    RouterConfig,
    SampleConfig,
    SegmentConfig,
    SigmoidTopKRouterConfig,
    SoftRouterConfig,
    TopKRouterConfig,
    TrainConfig,
)

# Size: depth, width, heads.
SIZES = {
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
    "G": (40, 1408, 16),
}

# DSMoE's models of 16 wide experts are shallower than those of 48 narrow ones, which have SIZES.
DS_MOE_SIZES = {
    "S": (10, 384, 6),
    "B": (10, 768, 12),
    "L": (20, 1024, 16),
    "3B": (30, 1152, 16),
}
# By the number of experts: how many a token has, and what their weights sum to.
DS_MOE_ROUTING = {16: (2, 2.0), 48: (5, 2.5)}

# Peebles & Xie 2023, section 4: learned-range variance, 250 ancestral steps.
_DDPM = DDPMConfig(variance="learned_range")

# The published models' averages have one decay from their first step on.
_TRAIN = TrainConfig(ema_warmup=False)

# DiT-MoE trains its larger models with rectified flow and feeds t in (0, 1).
_DIT_MOE_OBJECTIVE: dict[str, ObjectiveConfig] = {
    "S": _DDPM,
    "B": _DDPM,
    "L": RectifiedFlowConfig(),
    "XL": RectifiedFlowConfig(),
    "G": RectifiedFlowConfig(),
}

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


def _eight_experts(router: RouterConfig) -> MoEConfig:
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


TC_DIT = _eight_experts(TopKRouterConfig(balance_coef=0.01))
EC_DIT = _eight_experts(ExpertChoiceRouterConfig())
DIFFMOE = _eight_experts(BatchPoolRouterConfig())


def _eight_halves(router: RouterConfig, top_k: int = 2, zeros: int = 0) -> MoEConfig:
    """Eight experts half as wide, of which a token has two on average."""
    return dataclasses.replace(
        _eight_experts(router), top_k=top_k, hidden_ratio=2, cheap_experts=("zero",) * zeros
    )


# Mixtures of other networks' papers, made for the comparison: active are 8 width^2 parameters of
# experts for a token, as in a dense feed-forward, in MoE++ near that.
_OF_OTHER_NETWORKS = {
    "Noisy": _eight_halves(NoisyTopKRouterConfig()),
    "X-MoE": _eight_experts(CosineRouterConfig()),
    "AdaMoE": _eight_halves(NullTopKRouterConfig(), top_k=4, zeros=8),
    "MoEPP": dataclasses.replace(
        _eight_experts(MixedTopKRouterConfig()),
        top_k=2,
        hidden_ratio=3.25,
        cheap_experts=("zero", "copy", "constant", "constant"),
    ),
    # As many slots as an image of 256 pixels has tokens.
    "Soft": _eight_experts(SoftRouterConfig(slots=32)),
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
RACE_SIZES = {**SIZES, "M": (16, 960, 16)}


# A feed-forward expert and one that runs over the image, which is sent to either as a whole.
HECTO = dataclasses.replace(
    _eight_experts(TopKRouterConfig()),
    num_experts=2,
    unlike=(ExpertGroup("bigru", 1, 0.625),),
    choose_by="image",
)
# Five experts as in tc-dit, two half and one twice as wide.
UNLIKE = dataclasses.replace(
    _eight_experts(TopKRouterConfig()),
    unlike=(ExpertGroup("gelu", 2, 2), ExpertGroup("gelu", 1, 8)),
)


def _pr_moe(num_experts: int) -> MoEConfig:
    """PR-MoE's mixture: a fixed feed-forward beside one routed expert of its width."""
    return dataclasses.replace(
        _eight_experts(TopKRouterConfig()), num_experts=num_experts, shared_hidden_ratio=4
    )


# PR-MoE-32/64 of 350M, whose depth, width and heads are those of DiT-L: ten MoE layers of 32
# experts, then two of 64.
_PR_MOE_SEGMENTS = SegmentConfig(20, _pr_moe(32)), SegmentConfig(4, _pr_moe(64))


def _ds_moe(num_experts: int, hidden_ratio: float) -> MoEConfig:
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


_SMALL_DIT_MOE = MoEConfig(
    router=TopKRouterConfig(),
    num_experts=8,
    top_k=2,
    hidden_ratio=1,
    shared_hidden_ratio=1,
)
# PR-MoE (Rajbhandari et al. 2022): a fixed feed-forward beside one routed expert of its width.
_PYRAMID = dataclasses.replace(
    _eight_experts(TopKRouterConfig()), hidden_ratio=2, shared_hidden_ratio=2
)
# For data sets that train in minutes. Active feed-forward parameters per token: 9 width^2 in
# dit-moe and ds-moe, and in adamoe and moe-plus-plus on average of the load that they aim at;
# 8 width^2 in the others (to which diffmoe's predictor adds width^2), but for hecto, whose
# recurrent expert computes all tokens: 11 width^2.
_SMALL_MOE = {
    "promoe": dataclasses.replace(PROMOE, num_experts=8),
    "promoe-ec": dataclasses.replace(PROMOE_EC, num_experts=8),
    "tc-dit": TC_DIT,
    "tc-sigmoid": _eight_experts(TopKRouterConfig(gate="sigmoid")),
    "tc-bias": _eight_experts(TopKRouterConfig(balance_coef=0, bias="sign")),
    "tc-noisy": dataclasses.replace(
        _eight_experts(NoisyTopKRouterConfig()), top_k=2, hidden_ratio=2
    ),
    "tc-capacity": _eight_experts(TopKRouterConfig(capacity_factor=1.25)),
    "x-moe": _eight_experts(CosineRouterConfig(rank=64)),
    "soft-moe": _eight_experts(SoftRouterConfig(slots=2)),
    "expert-race": _eight_halves(ExpertRaceRouterConfig()),
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
    "pre-gated": _eight_experts(TopKRouterConfig()),
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

_PRESETS: dict[str, tuple[ModelConfig, ObjectiveConfig, TrainConfig]] = {}


def _add(
    name: str,
    size: tuple[int, int, int],
    moe: MoEConfig | None,
    objective: ObjectiveConfig,
    train: TrainConfig,
    *,
    learn_sigma: bool,
    dtype: Literal["float32", "bfloat16"] = "float32",
    position: Literal["sincos", "rope"] = "sincos",
    mlp_activation: str = "gelu",
    segments: tuple[SegmentConfig, ...] = (),
    pregate: PregateConfig | None = None,
) -> None:
    depth, width, heads = size
    model = ModelConfig(
        depth=depth,
        width=width,
        heads=heads,
        mlp_activation=mlp_activation,
        learn_sigma=learn_sigma,
        position=position,
        moe=moe,
        segments=segments,
        pregate=pregate,
        dtype=dtype,
    )
    _PRESETS[name] = (model, objective, train)


for _size in ("S", "B", "L", "XL"):
    _add(f"DiT-{_size}/2", SIZES[_size], None, _DDPM, _TRAIN, learn_sigma=True)

for _size in ("S", "B", "L", "XL", "G"):
    for _experts in (8, 16):
        _add(
            f"DiT-MoE-{_size}/2-{_experts}E2A",
            SIZES[_size],
            MoEConfig(router=TopKRouterConfig(balance_coef=0.01), num_experts=_experts, top_k=2),
            _DIT_MOE_OBJECTIVE[_size],
            _TRAIN,
            # Under rectified flow the second half of the channels stays unused, as published.
            learn_sigma=True,
        )

# ProMoE and what its paper compares it with, trained alike.
for _name, _moe in (
    *((f"ProMoE-{_size}/2", PROMOE) for _size in ("S", "B", "L", "XL")),
    ("ProMoE-EC-L/2", PROMOE_EC),
    ("TC-DiT-L/2-E8", TC_DIT),
    ("EC-DiT-L/2-E8", EC_DIT),
    *((f"DiffMoE-{_size}/2-E8", DIFFMOE) for _size in ("B", "L", "XL")),
    *((f"{_name}-DiT-L/2-E8", _moe) for _name, _moe in _OF_OTHER_NETWORKS.items()),
    *((f"Race-DiT-{_size}/2-4in32", RACE) for _size in ("B", "M", "L", "XL")),
    *((f"Hecto-DiT-{_size}/2", HECTO) for _size in ("S", "B", "L", "XL")),
    ("Unlike-DiT-L/2-E8", UNLIKE),
    ("PR-MoE-DiT-L/2-E32-64", None),
    *((f"Pregated-DiT-{_size}/2-E8", TC_DIT) for _size in ("S", "B", "L", "XL")),
):
    _add(
        _name,
        RACE_SIZES[_name.partition("/")[0].rpartition("-")[2]],
        _moe,
        RectifiedFlowConfig(time_scale=1000),
        dataclasses.replace(_TRAIN, steps=500_000, gradient_clip=0.5),
        learn_sigma=False,
        dtype="bfloat16",
        segments=_PR_MOE_SEGMENTS if _name.startswith("PR-MoE") else (),
        pregate=PregateConfig() if _name.startswith("Pregated") else None,
    )

for _name, _shape, _moe in (
    *((f"DSMoE-{_s}/2-E16", DS_MOE_SIZES[_s], _ds_moe(16, 2)) for _s in ("S", "B", "L")),
    ("DSMoE-3B/2-E16", DS_MOE_SIZES["3B"], _ds_moe(16, 2.5)),
    *((f"DSMoE-{_s}/2-E48", SIZES[_s], _ds_moe(48, 1 / 3)) for _s in ("S", "B")),
    ("DSMoE-L/2-E48", SIZES["L"], _ds_moe(48, 448 / 1024)),
):
    _add(
        _name,
        _shape,
        _moe,
        RectifiedFlowConfig(time_distribution="uniform"),
        dataclasses.replace(_TRAIN, steps=700_000, batch_size=512),
        # The second half of the channels stays unused, as published.
        learn_sigma=True,
        position="rope",
        mlp_activation="silu",
    )

PRESET_NAMES = tuple(_PRESETS)


def preset(name: str, image_pixels: int = 256) -> Config:
    """The experiment of a published model.

    Args:
      name: one of `PRESET_NAMES`.
      image_pixels: side of the decoded image; the latent is 8 times smaller.

    Raises:
      ConfigError: for an unknown name or a size that is not a multiple of 16.
    """
    if name not in _PRESETS:
        raise ConfigError(f"preset is {name!r}; allowed: {', '.join(PRESET_NAMES)}")
    if image_pixels <= 0 or image_pixels % 16:
        raise ConfigError(f"image_pixels is {image_pixels}; allowed: multiples of 16, such as 256")
    model, objective, train = _PRESETS[name]
    return Config(
        name=f"{name}@{image_pixels}",
        model=dataclasses.replace(model, image_size=image_pixels // 8),
        objective=objective,
        data=DataConfig(source="prepared", path=(f"data/imagenet{image_pixels}",), flip=True),
        train=train,
        sample=SampleConfig(steps=250, guidance=GuidanceConfig(scale=1.5)),
    )


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


def small_model(architecture: str, dense: ModelConfig) -> ModelConfig:
    """A small model, for config files: a dense one with the architecture's mixture in it.

    In a pyramid the last MoE layer has twice as many experts as the others. With a router before
    the trunk, that has a block of one head, a quarter of the width.

    Raises:
      ConfigError: see `small_moe`.
    """
    moe = small_moe(architecture, dense.num_tokens)
    if architecture in _PREGATED:
        return dataclasses.replace(dense, moe=moe, pregate=PregateConfig(heads=1))
    if moe is None or architecture not in _PYRAMIDS:
        return dataclasses.replace(dense, moe=moe)
    top = dataclasses.replace(moe, num_experts=2 * moe.num_experts)
    segments = SegmentConfig(dense.depth - moe.every, moe), SegmentConfig(moe.every, top)
    return dataclasses.replace(dense, segments=segments)


def preset_from_argument(family: str, argument: str) -> Config:
    """`preset` for config files: argument "XL/2-8E2A" or "XL/2-8E2A@512" of a family."""
    size, _, pixels = argument.partition("@")
    if pixels and not pixels.isdigit():
        raise ConfigError(f"image size is {pixels!r} in {argument!r}; allowed: 256 or 512")
    return preset(f"{family}-{size}", int(pixels or 256))
