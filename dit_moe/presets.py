"""The published models by name: "DiT-XL/2", "DiT-MoE-S/2-8E2A", "ProMoE-B/2", "EC-DiT-L/2-E8".

Each preset is a whole experiment: network, objective, optimiser and sampler of its paper, on
ImageNet latents of the f8 autoencoder.
"""

import dataclasses
from typing import Literal

from dit_moe.config import (
    BatchPoolRouterConfig,
    Config,
    ConfigError,
    DataConfig,
    DDPMConfig,
    ExpertChoiceRouterConfig,
    ModelConfig,
    MoEConfig,
    ObjectiveConfig,
    PrototypeExpertChoiceRouterConfig,
    PrototypeRouterConfig,
    RectifiedFlowConfig,
    RouterConfig,
    SampleConfig,
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

# Peebles & Xie 2023, section 4: learned-range variance, 250 ancestral steps.
_DDPM = DDPMConfig(variance="learned_range")

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

# For data sets that train in minutes. Active feed-forward parameters per token: 9 width^2 in
# dit-moe, 8 width^2 in the others (to which diffmoe's predictor adds width^2).
_SMALL_MOE = {
    "promoe": dataclasses.replace(PROMOE, num_experts=8),
    "promoe-ec": dataclasses.replace(PROMOE_EC, num_experts=8),
    "tc-dit": TC_DIT,
    "ec-dit": EC_DIT,
    "diffmoe": DIFFMOE,
    "dit-moe": MoEConfig(
        router=TopKRouterConfig(),
        num_experts=8,
        top_k=2,
        hidden_ratio=1,
        shared_hidden_ratio=1,
    ),
    "dit": None,
}

_PRESETS: dict[str, tuple[ModelConfig, ObjectiveConfig, TrainConfig]] = {}


def _add(
    name: str,
    size: str,
    moe: MoEConfig | None,
    objective: ObjectiveConfig,
    train: TrainConfig,
    *,
    learn_sigma: bool,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> None:
    depth, width, heads = SIZES[size]
    model = ModelConfig(
        depth=depth, width=width, heads=heads, moe=moe, learn_sigma=learn_sigma, dtype=dtype
    )
    _PRESETS[name] = (model, objective, train)


for _size in ("S", "B", "L", "XL"):
    _add(f"DiT-{_size}/2", _size, None, _DDPM, TrainConfig(), learn_sigma=True)

for _size in ("S", "B", "L", "XL", "G"):
    for _experts in (8, 16):
        _add(
            f"DiT-MoE-{_size}/2-{_experts}E2A",
            _size,
            MoEConfig(router=TopKRouterConfig(balance_coef=0.01), num_experts=_experts, top_k=2),
            _DIT_MOE_OBJECTIVE[_size],
            TrainConfig(),
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
):
    _add(
        _name,
        _name.partition("/")[0].rpartition("-")[2],
        _moe,
        RectifiedFlowConfig(time_scale=1000),
        TrainConfig(steps=500_000, gradient_clip=0.5),
        learn_sigma=False,
        dtype="bfloat16",
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
        sample=SampleConfig(steps=250, guidance_scale=1.5),
    )


def small_moe(architecture: str) -> MoEConfig | None:
    """The mixture of a small model, for config files, by architecture; "dit" has none.

    Raises:
      ConfigError: for another name.
    """
    if architecture not in _SMALL_MOE:
        raise ConfigError(f"architecture is {architecture!r}; allowed: {', '.join(_SMALL_MOE)}")
    return _SMALL_MOE[architecture]


def preset_from_argument(family: str, argument: str) -> Config:
    """`preset` for config files: argument "XL/2-8E2A" or "XL/2-8E2A@512" of a family."""
    size, _, pixels = argument.partition("@")
    if pixels and not pixels.isdigit():
        raise ConfigError(f"image size is {pixels!r} in {argument!r}; allowed: 256 or 512")
    return preset(f"{family}-{size}", int(pixels or 256))
