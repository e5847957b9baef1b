"""What the network learns to predict."""

from typing import Annotated, Literal

from pydantic import Field, PlainValidator
from pydantic.dataclasses import dataclass

from dit_moe.config.registry import Registry
from dit_moe.config.rules import RULES, ConfigError, PositiveFloat, require


@dataclass(frozen=True, config=RULES)
class ObjectiveSettings:
    """What all objectives have: a name, and facts, none of which has a default."""

    name: str

    @property
    def sampled_timesteps(self) -> int | None:
        """How many steps of its own chain sampling visits at most, from the first on; None: it has
        no such chain, and the solver `ancestral` is not for it."""
        raise self._untold("its sampled_timesteps")

    @property
    def learns_variance(self) -> bool:
        """Whether half of the network's output is a variance (`model.learn_sigma`)."""
        raise self._untold("whether it learns_variance")

    @property
    def flow_time_scale(self) -> float | None:
        """What the network sees of a flow time, over that time; None: it sees numbers of steps."""
        raise self._untold("its flow_time_scale")

    @property
    def meaning(self) -> dict[str, object]:
        """The fields that fix what a network is shown and what its output means, with their
        values: networks of the same ones can be put in each other's place."""
        raise self._untold("its meaning")

    def _untold(self, what: str) -> ConfigError:
        return ConfigError(f"objective {self.name!r} does not tell {what}")


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
        """All but the last few with cosine betas.

        Cosine betas end in three that each take more than half of the signal's power, down to
        nearly nothing: what the network errs in the noise there would be magnified in x_0.
        """
        return max(self.timesteps - 3, 1) if self.betas == "cosine" else self.timesteps

    @property
    def learns_variance(self) -> bool:
        """With the variance `learned_range`."""
        return self.variance == "learned_range"

    @property
    def flow_time_scale(self) -> None:
        """The network sees timesteps."""
        return None

    @property
    def meaning(self) -> dict[str, object]:
        """The noise that a step has; how the variance is learnt lies beside it."""
        return {"name": self.name, "timesteps": self.timesteps, "betas": self.betas}


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

    @property
    def sampled_timesteps(self) -> None:
        """Times are continuous."""
        return None

    @property
    def learns_variance(self) -> bool:
        """Never: there is no noise on the way."""
        return False

    @property
    def flow_time_scale(self) -> float:
        """That of the config."""
        return self.time_scale

    @property
    def meaning(self) -> dict[str, object]:
        """How a time is shown; how often each is drawn does not matter."""
        return {"name": self.name, "time_scale": self.time_scale}


def other_meaning(a: ObjectiveSettings, b: ObjectiveSettings) -> str | None:
    """The field by which a network means something else under two objectives, if any."""
    one, two = a.meaning, b.meaning
    return next((field for field in {**one, **two} if one.get(field) != two.get(field)), None)


ObjectiveConfig = Annotated[ObjectiveSettings, PlainValidator(OBJECTIVES.parse)]
