"""The published DiT-MoE models on ImageNet latents.

Argument: {S,B,L,XL,G}/2-{8,16}E2A, with "@512" for 512 px images (default 256).
"""

from dit_moe.config import Config
from dit_moe.config.presets import preset_from_argument


def get_config(model: str = "S/2-8E2A") -> Config:
    return preset_from_argument("DiT-MoE", model)
