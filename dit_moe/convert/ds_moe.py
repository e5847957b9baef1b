"""DSMoE (yhlleo/EfficientMoE), whose code derives from ProMoE's."""

from collections.abc import Iterator, Mapping
from typing import Any

from dit_moe.config import ConfigError, ModelConfig, ObjectiveConfig, SigmoidTopKRouterConfig
from dit_moe.config.mixtures import DS_MOE_ROUTING
from dit_moe.config.presets import DS_MOE_SIZES, SIZES
from dit_moe.convert.entries import Entry
from dit_moe.convert.peer import Arguments, Given, Layer, Peer, mixture_of
from dit_moe.convert.requirements import Requirements
from dit_moe.convert.shapes import Shapes


def _bias(theirs: str, ours: str, unit: int) -> Iterator[Entry]:
    yield Entry(f"{theirs}.gate.e_score_correction_bias", f"{ours}.bias", (unit,))


class DSMoE(Peer):
    """Routing as in DeepSeek-V3, rotary positions, and the other clock."""

    title = "DSMoE"
    layer = Layer(
        "mlp.gate.weight",
        ("sigmoid_top_k",),
        "swiglu",
        shared="shared_experts",
        must_share=True,
        experts="experts.blocks",
        beside=_bias,
        told_by=".mlp.gate.e_score_correction_bias",
    )
    other_clock = True
    dit_blocks = False

    def arguments(self, model: ModelConfig, require: Requirements) -> Arguments:
        """Those of the mixture are one dictionary."""
        require.no_qk_norm(model)
        moe = require.mixture(model, "sigmoid_top_k", "swiglu", 1, 2)
        if moe is None or not isinstance(moe.router, SigmoidTopKRouterConfig):
            return {}
        if moe.every == 2:
            require.one_of("model.mlp_activation", model.mlp_activation, "silu")
        require(
            moe.shared_hidden_ratio == moe.hidden_ratio,
            "model.moe.shared_hidden_ratio",
            moe.shared_hidden_ratio,
            f"{moe.hidden_ratio:g}, the hidden_ratio of the routed experts",
        )
        mixture = {
            "num_experts": moe.num_experts,
            "moe_intermediate_size": int(moe.hidden_ratio * model.width),
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": moe.top_k,
            "routed_scaling_factor": moe.router.scale,
            "use_shared_expert": True,
            "interleave": moe.every == 2,
            "skip_first2": False,
            "init_MoeMLP": False,
        }
        return {"rope_type": "2d" if model.position == "rope" else "none", "MoE_config": mixture}

    def sizes(self, shapes: Shapes) -> Mapping[str, tuple[int, int, int]]:
        """Its own sizes with 16 experts, DiT's with 48."""
        num_experts = shapes.get("blocks.1.mlp.gate.weight", (0,))[0]
        return {16: DS_MOE_SIZES, 48: SIZES}.get(num_experts, {})

    def blocks(self, shapes: Shapes) -> dict[str, Any]:
        """Rotary positions have no tensor."""
        position = "sincos" if "pos_embed" in shapes else "rope"
        return {"mlp_activation": "silu", "position": position}

    def told(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """Which positions it has."""
        return {"rope_type": "none" if model["position"] == "sincos" else "2d"}

    def router(self, num_experts: int, given: Given | None) -> tuple[int, dict[str, Any]]:
        """Published is one pair of top_k and scale for a number of experts."""
        mixture = mixture_of(given or {})
        if given is None:
            top_k, scale = DS_MOE_ROUTING[num_experts]
        else:
            for name in ("num_experts_per_tok", "routed_scaling_factor"):
                if name not in mixture:
                    raise ConfigError(
                        f"MoE_config.{name} is missing in --model_json; shapes do not tell it"
                    )
            top_k, scale = mixture["num_experts_per_tok"], mixture["routed_scaling_factor"]
        groups, chosen = mixture.get("n_group", 1), mixture.get("topk_group", 1)
        if chosen != groups:
            raise ConfigError(
                f"MoE_config.topk_group is {chosen!r} in --model_json; allowed: n_group "
                f"({groups!r}), so that a token chooses among all experts, as in the published "
                "models"
            )
        # Its code never moves the bias.
        return top_k, {"name": "sigmoid_top_k", "scale": scale, "bias_rate": 0}

    def setting(self, size: str | None, moe: Mapping[str, Any] | None) -> tuple[str, str]:
        """That of the smallest with 16 experts."""
        del size
        assert moe is not None
        return f"-E{moe['num_experts']}", "DSMoE-S/2-E16"

    def flow(self, base: ObjectiveConfig, given: Given) -> ObjectiveConfig:
        """That of the preset."""
        del given
        return base
