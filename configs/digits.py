"""Handwritten digits, 8x8: a few minutes on two CPU cores.

Argument: an architecture of dit_moe/config/small_models.py, such as promoe, dit-moe or dit.
"""

from dit_moe.config import Config, DataConfig, GuidanceConfig, RectifiedFlowConfig, SampleConfig
from dit_moe.config.small_models import small_model, small_training


def get_config(architecture: str = "promoe") -> Config:
    return Config(
        name=f"digits-{architecture}",
        model=small_model(
            architecture, image_size=8, channels=1, patch_size=2, num_classes=10, depth=4
        ),
        objective=RectifiedFlowConfig(time_scale=1000),
        data=DataConfig(source="digits"),
        train=small_training(steps=1200, batch_size=128, warmup_steps=100),
        sample=SampleConfig(solver="heun", steps=25, guidance=GuidanceConfig(scale=1.25)),
    )
