"""DiT-MoE (Fei et al. 2024, feizc/DiT-MoE)."""

from collections.abc import Mapping
from typing import Any

from dit_moe.config import ModelConfig, ObjectiveConfig, RectifiedFlowConfig
from dit_moe.convert.peer import Arguments, Given, Layer, Peer
from dit_moe.convert.requirements import Requirements

_TOP_K = 2  # what its constructor takes if it is not given


class DiTMoE(Peer):
    """Every block has a mixture of SwiGLU experts, two of which are shared as one."""

    title = "DiT-MoE"
    may_be_ddpm = True
    layer = Layer("moe.gate.weight", ("top_k",), "swiglu", shared="shared_experts")

    def arguments(self, model: ModelConfig, require: Requirements) -> Arguments:
        """`mlp_ratio` is that of the experts."""
        require.no_qk_norm(model)
        moe = require.mixture(model, "top_k", "swiglu", 1)
        if moe is None:
            return {}
        shared, ratio = moe.shared_hidden_ratio, moe.hidden_ratio
        require.one_of("model.moe.shared_hidden_ratio", shared, 2)
        require(ratio.is_integer(), "model.moe.hidden_ratio", ratio, "a whole number")
        return {
            "mlp_ratio": int(ratio),
            "num_experts": moe.num_experts,
            "num_experts_per_tok": moe.top_k,
        }

    def router(self, num_experts: int, given: Given | None) -> tuple[int, dict[str, Any]]:
        """Softmax over all experts."""
        del num_experts
        return (given or {}).get("num_experts_per_tok", _TOP_K), {"name": "top_k"}

    def setting(self, size: str | None, moe: Mapping[str, Any] | None) -> tuple[str, str]:
        """That of the 8 experts of the size."""
        assert moe is not None
        suffix = f"-{moe['num_experts']}E{moe['top_k']}A"
        return suffix, f"DiT-MoE-{size or 'S'}/2-8E2A"

    def flow(self, base: ObjectiveConfig, given: Given) -> ObjectiveConfig:
        """Times go from 0 to 1."""
        del base, given
        return RectifiedFlowConfig(time_scale=1)
