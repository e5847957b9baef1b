"""Colour patches of eight photographs, 32x32: a quarter of an hour on two CPU cores.

Argument: an architecture of dit_moe/config/small_models.py, such as promoe, dit-moe or dit.
"""

from dit_moe.config import Config, DataConfig, GuidanceConfig, RectifiedFlowConfig, SampleConfig
from dit_moe.config.small_models import small_model, small_training


def get_config(architecture: str = "promoe") -> Config:
    return Config(
        name=f"patches-{architecture}",
        model=small_model(
            architecture, image_size=32, channels=3, patch_size=4, num_classes=8, depth=6
        ),
        objective=RectifiedFlowConfig(time_scale=1000),
        data=DataConfig(source="patches", flip=True),
        train=small_training(steps=2000, batch_size=64, warmup_steps=200),
        sample=SampleConfig(solver="heun", steps=25, guidance=GuidanceConfig(scale=1.5)),
    )
