"""Colour patches of eight photographs, 32x32: a quarter of an hour on two CPU cores.

Argument: promoe, promoe-ec, tc-dit, tc-sigmoid, tc-bias, tc-capacity, tc-noisy, x-moe, ec-dit,
diffmoe, expert-race, soft-moe, dit-moe, adamoe, moe-plus-plus, hecto, unlike, pyramid, pyramid-mix,
pre-gated, ds-moe or dit.
"""

from dit_moe.config import (
    Config,
    DataConfig,
    GuidanceConfig,
    ModelConfig,
    RectifiedFlowConfig,
    SampleConfig,
    TrainConfig,
)
from dit_moe.config.small_models import small_model


def get_config(architecture: str = "promoe") -> Config:
    return Config(
        name=f"patches-{architecture}",
        model=small_model(
            architecture,
            ModelConfig(
                image_size=32,
                channels=3,
                patch_size=4,
                num_classes=8,
                width=128,
                depth=6,
                heads=4,
            ),
        ),
        objective=RectifiedFlowConfig(time_scale=1000),
        data=DataConfig(source="patches", flip=True),
        train=TrainConfig(
            steps=2000,
            batch_size=64,
            learning_rate=1e-3,
            warmup_steps=200,
            schedule="cosine",
            gradient_clip=1.0,
            ema_decay=0.995,
            ema_warmup=False,  # as the figures in the docs were measured
            log_every=50,
            checkpoint_every=500,
            sample_every=500,
        ),
        sample=SampleConfig(solver="heun", steps=25, guidance=GuidanceConfig(scale=1.5)),
    )
