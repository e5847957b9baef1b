"""Handwritten digits, 8x8: a few minutes on two CPU cores.

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
        name=f"digits-{architecture}",
        model=small_model(
            architecture,
            ModelConfig(
                image_size=8,
                channels=1,
                patch_size=2,
                num_classes=10,
                width=128,
                depth=4,
                heads=4,
            ),
        ),
        objective=RectifiedFlowConfig(time_scale=1000),
        data=DataConfig(source="digits"),
        train=TrainConfig(
            steps=1200,
            batch_size=128,
            learning_rate=1e-3,
            warmup_steps=100,
            schedule="cosine",
            gradient_clip=1.0,
            ema_decay=0.995,
            ema_warmup=False,  # as the figures in the docs were measured
            log_every=50,
            checkpoint_every=300,
            sample_every=300,
        ),
        sample=SampleConfig(solver="heun", steps=25, guidance=GuidanceConfig(scale=1.25)),
    )
