"""The published ProMoE models on ImageNet latents.

Argument: S/2, B/2, L/2 or XL/2, or EC-L/2 where experts choose tokens, with "@512" for 512 px
images (default 256).
"""

from dit_moe.config import Config
from dit_moe.config.presets import preset_from_argument


def get_config(model: str = "S/2") -> Config:
    return preset_from_argument("ProMoE", model)
