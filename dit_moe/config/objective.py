"""What the network learns to predict."""

from typing import Annotated, Literal

from pydantic import Field, PlainValidator
from pydantic.dataclasses import dataclass

from dit_moe.config.registry import Registry
from dit_moe.config.rules import RULES, PositiveFloat, require


@dataclass(frozen=True, config=RULES)
class ObjectiveSettings:
    """What an objective is trained by; see `OBJECTIVES`."""

    name: str


OBJECTIVES = Registry(ObjectiveSettings)
"""By name. The function that each of them stands for is in `diffusion/`."""


@OBJECTIVES.add
@dataclass(frozen=True, config=RULES)
class DDPMConfig(ObjectiveSettings):
    """Denoising diffusion with noise prediction (Ho et al. 2020, Nichol & Dhariwal 2021)."""

    name: Literal["ddpm"] = "ddpm"
    timesteps: Annotated[int, Field(ge=2, le=1_000_000)] = 1000
    betas: Literal["linear", "cosine"] = "linear"
    variance: Literal["fixed_small", "fixed_large", "learned_range"] = "fixed_small"
    """`learned_range` (DiT) needs model.learn_sigma and adds the variational term to the loss."""

    def __post_init__(self) -> None:
        require(
            self.betas != "linear" or self.timesteps > 20,
            f"timesteps is {self.timesteps} with betas 'linear'; allowed: 21 or more "
            "(with fewer, a beta reaches 1)",
        )

    @property
    def sampled_timesteps(self) -> int:
        """How many timesteps, from the first on, sampling visits.

        Cosine betas end in three that each take more than half of the signal's power, down to
        nearly nothing: what the network errs in the noise there would be magnified in x_0.
        """
        return max(self.timesteps - 3, 1) if self.betas == "cosine" else self.timesteps


@OBJECTIVES.add
@dataclass(frozen=True, config=RULES)
class RectifiedFlowConfig(ObjectiveSettings):
    """Straight paths from data to noise with velocity prediction (Liu et al. 2022)."""

    name: Literal["rectified_flow"] = "rectified_flow"
    time_distribution: Literal["logit_normal", "uniform"] = "logit_normal"
    # Beyond these bounds times coincide in float32.
    shift: Annotated[float, Field(ge=1e-3, le=1e3)] = 1.0
    """Resolution shift s of the time: t -> s t / (1 + (s - 1) t) (Esser et al. 2024, eq. 23)."""
    time_scale: PositiveFloat = 1.0
    """The network sees t * time_scale: 1 in DiT-MoE, 1000 in ProMoE."""


ObjectiveConfig = Annotated[ObjectiveSettings, PlainValidator(OBJECTIVES.parse)]
