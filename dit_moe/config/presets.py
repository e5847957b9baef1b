"""The published models by name: "DiT-XL/2", "DiT-MoE-S/2-8E2A", "ProMoE-B/2", "EC-DiT-L/2-E8",
"DSMoE-S/2-E16".

Each preset is a whole experiment: network, objective, optimiser and sampler of its paper, on
ImageNet latents of the f8 autoencoder.
"""

import dataclasses
from typing import Literal

from dit_moe.config import (
    Config,
    ConfigError,
    DataConfig,
    DDPMConfig,
    GuidanceConfig,
    ModelConfig,
    MoEConfig,
    ObjectiveConfig,
    PregateConfig,
    RectifiedFlowConfig,
    SampleConfig,
    SegmentConfig,
    TopKRouterConfig,
    TrainConfig,
)
from dit_moe.config.mixtures import (
    DIFFMOE,
    EC_DIT,
    HECTO,
    OF_OTHER_NETWORKS,
    PR_MOE_SEGMENTS,
    PROMOE,
    PROMOE_EC,
    RACE,
    TC_DIT,
    UNLIKE,
    ds_moe,
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

# Of Expert Race, which has one size more.
RACE_SIZES = {**SIZES, "M": (16, 960, 16)}

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
    *((f"{_name}-DiT-L/2-E8", _moe) for _name, _moe in OF_OTHER_NETWORKS.items()),
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
        segments=PR_MOE_SEGMENTS if _name.startswith("PR-MoE") else (),
        pregate=PregateConfig() if _name.startswith("Pregated") else None,
    )

for _name, _shape, _moe in (
    *((f"DSMoE-{_s}/2-E16", DS_MOE_SIZES[_s], ds_moe(16, 2)) for _s in ("S", "B", "L")),
    ("DSMoE-3B/2-E16", DS_MOE_SIZES["3B"], ds_moe(16, 2.5)),
    *((f"DSMoE-{_s}/2-E48", SIZES[_s], ds_moe(48, 1 / 3)) for _s in ("S", "B")),
    ("DSMoE-L/2-E48", SIZES["L"], ds_moe(48, 448 / 1024)),
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


def preset_from_argument(family: str, argument: str) -> Config:
    """`preset` for config files: argument "XL/2-8E2A" or "XL/2-8E2A@512" of a family."""
    size, _, pixels = argument.partition("@")
    if pixels and not pixels.isdigit():
        raise ConfigError(f"image size is {pixels!r} in {argument!r}; allowed: 256 or 512")
    return preset(f"{family}-{size}", int(pixels or 256))
