"""The DSMoE models on ImageNet latents.

Argument: {S,B,L,3B}/2-E16 or {S,B,L}/2-E48, with "@512" for 512 px images (default 256).
"""

from dit_moe.config import Config
from dit_moe.config.presets import preset_from_argument


def get_config(model: str = "S/2-E16") -> Config:
    return preset_from_argument("DSMoE", model)
