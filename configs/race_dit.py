"""Race-DiT (Expert Race) on ImageNet latents: 4 of 32 experts a token on average.

Argument: {B,M,L,XL}/2-4in32, with "@512" for 512 px images (default 256).
"""

from dit_moe.config import Config
from dit_moe.config.presets import preset_from_argument


def get_config(model: str = "XL/2-4in32") -> Config:
    return preset_from_argument("Race-DiT", model)
