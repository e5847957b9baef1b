"""DiT-MoE (Fei et al. 2024, feizc/DiT-MoE)."""

from collections.abc import Mapping
from typing import Any

from dit_moe.config import ModelConfig, ObjectiveConfig, RectifiedFlowConfig
from dit_moe.convert.peer import Arguments, Given, Layer, Peer
from dit_moe.convert.requirements import Requirements
from dit_moe.convert.shapes import Shapes

_TOP_K = 2  # what its constructor takes if it is not given
_WIDEST_HEAD = 128  # of its flash attention


class DiTMoE(Peer):
    """Every block has a mixture of SwiGLU experts, two of which are shared as one.

    Its models are built with flash attention (`use_flash_attn`) or without: the larger ones, XL and
    G, are sampled with it. Then queries and keys are normalised, and the parts of attention have
    that module's names.
    """

    title = "DiT-MoE"
    may_be_ddpm = True
    qk_norm_epsilon = 1e-6
    normalised: Mapping[str, str] = {"qkv": "Wqkv", "proj": "out_proj"}
    layer = Layer("moe.gate.weight", ("top_k",), "swiglu", shared="shared_experts")

    def arguments(self, model: ModelConfig, require: Requirements) -> Arguments:
        """`mlp_ratio` is that of the experts."""
        flash: Arguments = {}
        if model.qk_norm:
            head = model.width // model.heads
            fits = head % 8 == 0 and head <= _WIDEST_HEAD
            allowed = f"heads of a width up to {_WIDEST_HEAD} that 8 divides"
            require(fits, "model.heads", model.heads, allowed)
            flash = {"use_flash_attn": True, "pretraining_tp": 1}
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
            **flash,
        }

    def blocks(self, shapes: Shapes) -> dict[str, Any]:
        """The epsilon is that of the module that the names tell."""
        flash = "blocks.0.attn.Wqkv.weight" in shapes
        return super().blocks(shapes) | ({"qk_norm_epsilon": 1e-6} if flash else {})

    def told(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """With flash attention, queries and keys are normalised."""
        return {"use_flash_attn": model["qk_norm"]}

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
