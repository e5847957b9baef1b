"""SiT (Ma et al. 2024, willisma/SiT), the linear path with velocities."""

from dit_moe.config import ConfigError, ObjectiveConfig, RectifiedFlowConfig
from dit_moe.convert.dit import DiT
from dit_moe.convert.peer import Given


class SiT(DiT):
    """DiT's network, of the other clock."""

    title = "SiT"
    may_be_ddpm = False
    other_clock = True

    def flow(self, base: ObjectiveConfig, given: Given) -> ObjectiveConfig:
        """Times are uniform; another path or prediction is refused."""
        del base
        for argument, expected in (("path_type", "Linear"), ("prediction", "velocity")):
            if given.get(argument, expected) != expected:
                raise ConfigError(
                    f"{argument} is {given[argument]!r} in --model_json; allowed: "
                    f"{expected!r}, as published"
                )
        return RectifiedFlowConfig(time_distribution="uniform")
