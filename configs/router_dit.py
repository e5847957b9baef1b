"""The DiT of ProMoE's comparison with the mixtures of other networks' papers, on ImageNet latents.

Argument: {Noisy,X-MoE,AdaMoE,MoEPP,Soft}-DiT-L/2-E8 or Pregated-DiT-{S,B,L,XL}/2-E8, with "@512"
for 512 px images (default 256).
"""

from dit_moe.config import Config
from dit_moe.config.presets import preset_from_argument


def get_config(model: str = "Soft-DiT-L/2-E8") -> Config:
    mixture, _, size = model.partition("-DiT-")
    return preset_from_argument(f"{mixture}-DiT", size)
