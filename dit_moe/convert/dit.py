"""DiT (Peebles and Xie 2022, facebookresearch/DiT)."""

from collections.abc import Mapping
from typing import Any

from dit_moe.config import ModelConfig, ObjectiveConfig, RectifiedFlowConfig
from dit_moe.convert.peer import Arguments, Given, Peer
from dit_moe.convert.requirements import Requirements


class DiT(Peer):
    """Its names are those of all other peers, but for the MoE layers."""

    title = "DiT"
    may_be_ddpm = True

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
        """Times go from 0 to 1."""
        del base, given
        return RectifiedFlowConfig(time_scale=1)
