"""The expert-choice DiT of ProMoE's comparison (EC-DiT), on ImageNet latents.

Argument: L/2-E8, with "@512" for 512 px images (default 256).
"""

from dit_moe.config import Config
from dit_moe.config.presets import preset_from_argument


def get_config(model: str = "L/2-E8") -> Config:
    return preset_from_argument("EC-DiT", model)
