"""What the constructors of the peers' classes take to make a network of this package."""

from collections.abc import Callable
from typing import Any

from dit_moe.config import (
    BatchPoolRouterConfig,
    Config,
    ConfigError,
    ModelConfig,
    MoEConfig,
    PrototypeSettings,
    RectifiedFlowConfig,
    SigmoidTopKRouterConfig,
)
from dit_moe.convert import Family
from dit_moe.convert.clocks import OTHER_CLOCK

Arguments = dict[str, Any]

_PROMOE_NULL = 1000
_DIFFMOE_DECAY = 0.95


class _Requirements:
    """What a family asks of a network; collects what is not as it should be."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def __call__(self, condition: bool, field: str, value: object, allowed: str) -> None:
        if not condition:
            self.problems.append(f"{field} is {value!r} (allowed: {allowed})")

    def one_of(self, field: str, value: object, *allowed: object) -> None:
        self(value in allowed, field, value, " or ".join(map(str, allowed)))

    def dense(self, model: ModelConfig) -> None:
        self(model.moe is None, "model.moe", "a mixture", "none")

    def no_qk_norm(self, model: ModelConfig) -> None:
        self(not model.qk_norm, "model.qk_norm", model.qk_norm, "false")

    def mixture(
        self, model: ModelConfig, router: str, expert: str, *every: int
    ) -> MoEConfig | None:
        """The network's mixture, if it is of this kind; None if there is none."""
        moe = model.moe
        self(moe is not None, "model.moe", None, "a mixture")
        if moe is None:
            return None
        self.one_of("model.moe.router.name", moe.router.name, router)
        self.one_of("model.moe.expert", moe.expert, expert)
        self.one_of("model.moe.every", moe.every, *every)
        self.one_of("model.moe.cheap_experts", moe.cheap_experts, ())
        return moe


def constructor_arguments(family: Family, config: Config) -> Arguments:
    """What the peer's constructor needs to make this network, ready for JSON.

    Raises:
      ConfigError: the family has no such network.
    """
    model, require = config.model, _Requirements()
    require(not model.segments, "model.segments", len(model.segments), "none")
    if family != "ds-moe":
        require.one_of("model.position", model.position, "sincos")
        require.one_of("model.mlp_activation", model.mlp_activation, "gelu")
    if family in OTHER_CLOCK:
        objective = config.objective
        fits = isinstance(objective, RectifiedFlowConfig) and objective.time_scale == 1
        require(fits, "objective", objective, "rectified_flow with time_scale 1")
    arguments = {
        "input_size": model.image_size,
        "patch_size": model.patch_size,
        "in_channels": model.channels,
        "hidden_size": model.width,
        "depth": model.depth,
        "num_heads": model.heads,
        "mlp_ratio": model.mlp_ratio,
        # With 0 its table would have no row for the null label.
        "class_dropout_prob": model.label_dropout or 0.1,
        "num_classes": model.num_classes,
        "learn_sigma": model.learn_sigma,
        **_OWN[family](config, require),
    }
    if require.problems:
        listed = "; ".join(require.problems)
        raise ConfigError(f"format {family!r} has no such network: {listed}")
    return arguments


def _dit(config: Config, require: _Requirements) -> Arguments:
    require.no_qk_norm(config.model)
    require.dense(config.model)
    return {"objective": config.objective.name}


def _sit(config: Config, require: _Requirements) -> Arguments:
    require.no_qk_norm(config.model)
    require.dense(config.model)
    return {}


def _dit_moe(config: Config, require: _Requirements) -> Arguments:
    require.no_qk_norm(config.model)
    moe = require.mixture(config.model, "top_k", "swiglu", 1)
    if moe is None:
        return {}
    shared, ratio = moe.shared_hidden_ratio, moe.hidden_ratio
    require.one_of("model.moe.shared_hidden_ratio", shared, 2)
    require(ratio.is_integer(), "model.moe.hidden_ratio", ratio, "a whole number")
    return {
        "mlp_ratio": int(ratio),
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "objective": config.objective.name,
    }


def _promoe(router: str) -> Callable[[Config, _Requirements], Arguments]:
    def arguments(config: Config, require: _Requirements) -> Arguments:
        model = config.model
        moe = require.mixture(model, router, "gelu", 1, 2)
        if moe is None or not isinstance(moe.router, PrototypeSettings):
            return {}
        require(
            not moe.unconditional_expert or model.null_label == _PROMOE_NULL,
            "model.num_classes",
            model.num_classes,
            f"{_PROMOE_NULL}, the null label that its code knows",
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

    return arguments


def _baseline(router: str, *every: int) -> Callable[[Config, _Requirements], Arguments]:
    """Of the networks that ProMoE's code has beside its own."""

    def arguments(config: Config, require: _Requirements) -> Arguments:
        model = config.model
        moe = require.mixture(model, router, "gelu", *every)
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

    return arguments


def _diffmoe(config: Config, require: _Requirements) -> Arguments:
    arguments = _baseline("batch_pool", 1, 2)(config, require)
    if config.model.moe is None or not isinstance(config.model.moe.router, BatchPoolRouterConfig):
        return arguments
    router = config.model.moe.router
    require(
        router.threshold_decay == _DIFFMOE_DECAY,
        "model.moe.router.threshold_decay",
        router.threshold_decay,
        f"{_DIFFMOE_DECAY}, as in its code",
    )
    return {**arguments, "CapacityPred_loss_weight": router.capacity_coef}


def _ds_moe(config: Config, require: _Requirements) -> Arguments:
    model = config.model
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


_OWN: dict[Family, Callable[[Config, _Requirements], Arguments]] = {
    "dit": _dit,
    "sit": _sit,
    "dit-moe": _dit_moe,
    "promoe": _promoe("prototype"),
    "promoe-ec": _promoe("prototype_expert_choice"),
    "tc-dit": _baseline("top_k", 2),
    "ec-dit": _baseline("expert_choice", 1, 2),
    "diffmoe": _diffmoe,
    "ds-moe": _ds_moe,
}
