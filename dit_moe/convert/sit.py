"""SiT (Ma et al. 2024, willisma/SiT), the linear path with velocities."""

from collections.abc import Mapping
from typing import Any

from dit_moe.config import ConfigError, ModelConfig, ObjectiveConfig, RectifiedFlowConfig
from dit_moe.convert.peer import Arguments, Given, Peer
from dit_moe.convert.requirements import Requirements


class SiT(Peer):
    """DiT's network, of the other clock."""

    title = "SiT"
    other_clock = True

    def arguments(self, model: ModelConfig, require: Requirements) -> Arguments:
        """None of its own."""
        require.no_qk_norm(model)
        require.dense(model)
        return {}

    def setting(self, size: str | None, moe: Mapping[str, Any] | None) -> tuple[str, str]:
        """That of DiT-S/2, whatever the size."""
        del size, moe
        return "", "DiT-S/2"

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
