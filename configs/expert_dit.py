"""The DiT of ProMoE's comparison with unlike experts or a pyramid of them, on ImageNet latents.

Argument: Hecto-DiT-{S,B,L,XL}/2, Unlike-DiT-L/2-E8 or PR-MoE-DiT-L/2-E32-64, with "@512" for 512 px
images (default 256).
"""

from dit_moe.config import Config
from dit_moe.config.presets import preset_from_argument


def get_config(model: str = "PR-MoE-DiT-L/2-E32-64") -> Config:
    mixture, _, size = model.partition("-DiT-")
    return preset_from_argument(f"{mixture}-DiT", size)
