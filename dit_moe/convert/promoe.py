"""ProMoE with its two routers, and the baselines beside it (ali-vilab/ProMoE)."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dit_moe.config import (
    BatchPoolRouterConfig,
    ConfigError,
    ModelConfig,
    MoEConfig,
    PrototypeSettings,
)
from dit_moe.convert.entries import Entry, linear
from dit_moe.convert.peer import Arguments, Given, Layer, Peer, mixture_of
from dit_moe.convert.requirements import Requirements

_NULL_LABEL = 1000
# What the constructors take for an argument that is not given.
_DEFAULTS = {
    "router_weight_mode": "softmax",
    "routing_contrastive_lam": 0.0,
    "routing_contrastive_temperature": 0.1,
}
_DIFFMOE_COEF = 0.01
_DIFFMOE_DECAY = 0.95


class ProMoE(Peer):
    """Routing by prototypes: by a token's choice (ProMoE) or an expert's (ProMoE-EC)."""

    layer = Layer(
        "mlp.cluster_centers",
        ("prototype", "prototype_expert_choice"),
        "gelu",
        ("up_proj", "down_proj"),
        shared="shared_expert",
        prototypes=True,
    )

    def __init__(self, title: str, router: str, top_k: int):
        """Takes the router's name, and the top_k of a constructor that is not given one."""
        self.title, self._router, self._top_k = title, router, top_k

    def arguments(self, model: ModelConfig, require: Requirements) -> Arguments:
        """Those of the mixture are one dictionary."""
        moe = require.mixture(model, self._router, "gelu", 1, 2)
        if moe is None or not isinstance(moe.router, PrototypeSettings):
            return {}
        require(
            not moe.unconditional_expert or model.null_label == _NULL_LABEL,
            "model.num_classes",
            model.num_classes,
            f"{_NULL_LABEL}, the null label that its code knows",
        )
        mixture = {
            "num_routed_experts": moe.num_experts,
            "moe_intermediate_size": int(moe.hidden_ratio * model.width),
            "shared_expert_intermediate_size": int(moe.shared_hidden_ratio * model.width),
            "top_k": moe.top_k,
            "load_balance_loss_coef": 0,
            "norm_topk_prob": False,
            "seq_aux": False,
            "use_shared_expert": moe.shared_hidden_ratio > 0,
            "use_uncond_expert": moe.unconditional_expert,
            "router_weight_mode": moe.router.activation,
            "routing_contrastive_lam": moe.router.contrastive_coef,
            "use_top_k_for_routing_contrastive": True,
            "routing_contrastive_temperature": moe.router.contrastive_temperature,
            "interleave": moe.every == 2,
            "init_MoeMLP": False,
        }
        return {"qk_norm": model.qk_norm, "MoE_config": mixture}

    def router(self, num_experts: int, given: Given | None) -> tuple[int, dict[str, Any]]:
        """Published are the router's defaults, with one expert for a token."""
        del num_experts
        mixture = mixture_of(given or {})
        router: dict[str, Any] = {"name": self._router}
        if given is None:
            return 1, router
        settings = {"top_k": self._top_k, **_DEFAULTS, **mixture}
        router["activation"] = settings["router_weight_mode"]
        router["contrastive_coef"] = settings["routing_contrastive_lam"]
        router["contrastive_temperature"] = settings["routing_contrastive_temperature"]
        return settings["top_k"], router

    def setting(self, size: str | None, moe: Mapping[str, Any] | None) -> tuple[str, str]:
        """That of ProMoE-S/2, whatever the size."""
        del size, moe
        return "", "ProMoE-S/2"


class Baseline(Peer):
    """A network that ProMoE's code has beside its own: TC-DiT and EC-DiT."""

    def __init__(self, title: str, layer: Layer, *every: int):
        """Takes the layer, and how often it may come."""
        self.title, self.layer, self._every = title, layer, every
        (self._router,) = layer.routers

    def arguments(self, model: ModelConfig, require: Requirements) -> Arguments:
        """`mlp_ratio` is that of the experts and the dense blocks."""
        moe = require.mixture(model, self._router, "gelu", *self._every)
        if moe is None:
            return {}
        require.one_of("model.moe.shared_hidden_ratio", moe.shared_hidden_ratio, 0)
        require(
            moe.every == 1 or moe.hidden_ratio == model.mlp_ratio,
            "model.moe.hidden_ratio",
            moe.hidden_ratio,
            f"{model.mlp_ratio:g}, the mlp_ratio of the dense blocks",
        )
        mixture = {
            "num_experts": moe.num_experts,
            "capacity": moe.top_k,
            "n_shared_experts": 0,
            "interleave": moe.every == 2,
            "init_MoeMLP": False,
        }
        return {"mlp_ratio": moe.hidden_ratio, "qk_norm": model.qk_norm, "MoE_config": mixture}

    def router(self, num_experts: int, given: Given | None) -> tuple[int, dict[str, Any]]:
        """Published with one expert for a token."""
        del num_experts
        mixture = mixture_of(given or {})
        if given is not None and "capacity" not in mixture:
            raise ConfigError(
                "MoE_config.capacity is missing in --model_json; shapes do not tell it"
            )
        return mixture.get("capacity", 1), {"name": self._router}

    def setting(self, size: str | None, moe: Mapping[str, Any] | None) -> tuple[str, str]:
        """That of ProMoE-S/2: they were trained as it was."""
        del size
        assert moe is not None
        return f"-E{moe['num_experts']}", "ProMoE-S/2"


class DiffMoE(Baseline):
    """Experts choose from the whole batch, and a predictor learns how many tokens of each."""

    def arguments(self, model: ModelConfig, require: Requirements) -> Arguments:
        """Its decay is fixed in the code."""
        arguments = super().arguments(model, require)
        moe = model.moe
        if moe is None or not isinstance(moe.router, BatchPoolRouterConfig):
            return arguments
        require(
            moe.router.threshold_decay == _DIFFMOE_DECAY,
            "model.moe.router.threshold_decay",
            moe.router.threshold_decay,
            f"{_DIFFMOE_DECAY}, as in its code",
        )
        return {**arguments, "CapacityPred_loss_weight": moe.router.capacity_coef}

    def router(self, num_experts: int, given: Given | None) -> tuple[int, dict[str, Any]]:
        """Experts choose in sampling, too, as published."""
        top_k, router = super().router(num_experts, given)
        coef = (given or {}).get("CapacityPred_loss_weight", _DIFFMOE_COEF)
        return top_k, {**router, "capacity_coef": coef, "inference": "batch"}


def _predictor(theirs: str, ours: str, unit: int) -> Iterator[Entry]:
    yield from linear(f"{theirs}.capacity_predictor.0", f"{ours}.predictor.dense_in", unit)
    yield from linear(f"{theirs}.capacity_predictor.2", f"{ours}.predictor.dense_out", unit)
    yield Entry(f"{theirs}.expert_threshold", f"{ours}.threshold", (unit,))


def _decay(moe: MoEConfig) -> dict[str, np.ndarray]:
    assert isinstance(moe.router, BatchPoolRouterConfig)
    return {"ema_decay": np.array([moe.router.threshold_decay], np.float32)}


PROMOE = ProMoE("ProMoE", "prototype", 2)
PROMOE_EC = ProMoE("ProMoE-EC", "prototype_expert_choice", 1)
TC_DIT = Baseline("TC-DiT", Layer("mlp.gate.weight", ("top_k",), "gelu"), 2)
EC_DIT = Baseline("EC-DiT", Layer("mlp.gate_weight", ("expert_choice",), "gelu"), 1, 2)
DIFFMOE = DiffMoE(
    "DiffMoE",
    Layer(
        "mlp.gate_weight",
        ("batch_pool",),
        "gelu",
        beside=_predictor,
        fixed=_decay,
        told_by=".mlp.capacity_predictor.0.weight",
    ),
    1,
    2,
)
