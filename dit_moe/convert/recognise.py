"""Which network a peer's tensors are: from their names and shapes, and its constructor arguments.

Shapes tell the size and kind. Heads and the experts per token they do not: those come from the
published model of the same size, or from the peer's constructor arguments (`--model_json`).
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dit_moe.config import (
    Config,
    ConfigError,
    DDPMConfig,
    ObjectiveConfig,
    RectifiedFlowConfig,
)
from dit_moe.config.files import from_dict, to_dict
from dit_moe.config.presets import DS_MOE_ROUTING, DS_MOE_SIZES, SIZES, preset
from dit_moe.convert import Family
from dit_moe.storage.records import read_json

_TITLES = {
    "dit": "DiT",
    "sit": "SiT",
    "dit-moe": "DiT-MoE",
    "promoe": "ProMoE",
    "promoe-ec": "ProMoE-EC",
    "tc-dit": "TC-DiT",
    "ec-dit": "EC-DiT",
    "diffmoe": "DiffMoE",
    "ds-moe": "DSMoE",
}


class _Layer(NamedTuple):
    """Names within an MoE layer of a family."""

    router: str
    """The router's tensor [E, D]."""
    up: str
    """An expert's tensor [hidden, D]."""
    shared: str | None = None
    """The shared expert."""
    experts: str = "experts"
    """The list of the routed experts."""


_PROMOE = _Layer("mlp.cluster_centers", "up_proj.weight", "shared_expert")
_LAYERS = {
    "dit-moe": _Layer("moe.gate.weight", "gate_proj.weight", "shared_experts"),
    "promoe": _PROMOE,
    "promoe-ec": _PROMOE,
    "tc-dit": _Layer("mlp.gate.weight", "fc1.weight"),
    "ec-dit": _Layer("mlp.gate_weight", "fc1.weight"),
    "diffmoe": _Layer("mlp.gate_weight", "fc1.weight"),
    "ds-moe": _Layer("mlp.gate.weight", "gate_proj.weight", "shared_experts", "experts.blocks"),
}
# Routers with the same name are told apart by what lies beside: family, other family, its tensor.
_TWINS = (
    ("ec-dit", "diffmoe", ".mlp.capacity_predictor.0.weight"),
    ("tc-dit", "ds-moe", ".mlp.gate.e_score_correction_bias"),
)

# What the peers' constructors take for an argument that is not given.
_DIT_MOE_TOP_K = 2
_PROMOE_DEFAULTS = {
    "router_weight_mode": "softmax",
    "routing_contrastive_lam": 0.0,
    "routing_contrastive_temperature": 0.1,
}
_PROMOE_TOP_K = {"promoe": 2, "promoe-ec": 1}
_DIFFMOE_COEF = 0.01
_IMAGENET = 1000

Shapes = Mapping[str, tuple[int, ...]]


def read_arguments(path: Path) -> dict[str, Any]:
    """The peer's constructor arguments from a JSON file.

    Raises:
      ConfigError: it is not there, or no JSON object.
    """
    try:
        arguments = read_json(path)
    except OSError as error:
        raise ConfigError(f"model_json is {str(path)!r}, which cannot be read: {error}") from None
    if not isinstance(arguments, dict):
        raise ConfigError(f"{path} holds no JSON object; allowed: constructor arguments by name")
    return arguments


def recognise(family: Family, shapes: Shapes, arguments: Mapping[str, Any] | None) -> Config:
    """The experiment that a state_dict belongs to.

    Args:
      family: whose names the tensors have.
      shapes: of all tensors by name.
      arguments: the peer's constructor arguments, and "objective" ("ddpm" or "rectified_flow")
        where the published habit does not hold. None: the published model of this size.

    Raises:
      ConfigError: the tensors are another family's, the size is not a published one and the
        arguments are not given, or the arguments contradict the shapes.
    """
    depth = _depth(shapes)
    _check_family(family, shapes)
    width, channels, patch, _ = _shape(shapes, "x_embedder.proj.weight", 4)
    rows = _shape(shapes, "y_embedder.embedding_table.weight", 2)[0]
    out = _shape(shapes, "final_layer.linear.weight", 2)[0] // patch**2
    size, heads = _published_size(_sizes(family, shapes), depth, width)
    side = 32 if arguments is None else arguments.get("input_size", 32)
    if "pos_embed" in shapes:
        side = patch * math.isqrt(_shape(shapes, "pos_embed", 3)[1])
    if not isinstance(side, int):
        raise ConfigError(f"input_size is {side!r} in --model_json; allowed: a whole number")
    if arguments is None and size is None:
        raise ConfigError(
            f"the tensors are of a network of width {width} and depth {depth}, which is no "
            "published one, and do not tell its heads; allowed: with --model_json, a JSON file of "
            "the constructor's arguments"
        )
    moe = _moe(family, shapes, depth, width, arguments)
    arguments = arguments or {}
    if arguments.get("class_dropout_prob") == 0:
        raise ConfigError(
            "class_dropout_prob is 0 in --model_json, with which the peers' networks have no row "
            "for the null label; allowed: more than 0"
        )
    if rows == _IMAGENET and "num_classes" not in arguments:
        # Its last class would be taken for the null label.
        raise ConfigError(
            f"y_embedder.embedding_table has {rows} rows, one for each class of ImageNet and none "
            f"for the null label; allowed: {rows + 1} rows, or --model_json with num_classes "
            f"{rows - 1} if the last one is the null label's"
        )
    model = {
        "width": width,
        "depth": depth,
        "heads": arguments.get("num_heads", heads),
        "image_size": side,
        "channels": channels,
        "patch_size": patch,
        "mlp_ratio": _mlp_ratio(shapes, width),
        "mlp_activation": "silu" if family == "ds-moe" else "gelu",
        "num_classes": rows - 1,
        "label_dropout": arguments.get("class_dropout_prob", 0.1),
        "learn_sigma": out == 2 * channels,
        "qk_norm": "blocks.0.attn.q_norm.weight" in shapes,
        "position": "rope" if family == "ds-moe" and "pos_embed" not in shapes else "sincos",
        "moe": moe,
    }
    told = {
        "hidden_size": width,
        "depth": depth,
        "input_size": side,
        "in_channels": channels,
        "patch_size": patch,
        "num_classes": rows - 1,
        "learn_sigma": out == 2 * channels,
    }
    if family == "ds-moe":
        told["rope_type"] = "none" if model["position"] == "sincos" else "2d"
    _refuse_contradictions(arguments, told)
    if moe is not None:
        experts = {"num_experts": moe["num_experts"], "num_routed_experts": moe["num_experts"]}
        _refuse_contradictions({**arguments, **_mixture(arguments)}, experts)
    if model["heads"] is None:
        raise ConfigError("num_heads is missing in --model_json; shapes do not tell it")
    return _experiment(family, size, model, arguments)


def _sizes(family: Family, shapes: Shapes) -> Mapping[str, tuple[int, int, int]]:
    """Depth, width and heads of the family's published models, by name."""
    if family != "ds-moe":
        return SIZES
    num_experts = shapes.get("blocks.1.mlp.gate.weight", (0,))[0]
    return {16: DS_MOE_SIZES, 48: SIZES}.get(num_experts, {})


def _published_size(
    sizes: Mapping[str, tuple[int, int, int]], depth: int, width: int
) -> tuple[str | None, int | None]:
    """Name and heads of the published model of these sizes, if there is one."""
    for name, (d, w, heads) in sizes.items():
        if (d, w) == (depth, width):
            return name, heads
    return None, None


def _refuse_contradictions(arguments: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    for name, value in told.items():
        if arguments.get(name, value) != value:
            raise ConfigError(
                f"{name} is {arguments[name]!r} in --model_json, but the tensors' shapes say "
                f"{value!r}"
            )


def _mixture(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of ProMoE's code that are those of the mixture."""
    mixture = arguments.get("MoE_config") or {}
    if not isinstance(mixture, dict):
        raise ConfigError(f"MoE_config is {mixture!r} in --model_json; allowed: a JSON object")
    return mixture


def _experiment(
    family: Family, size: str | None, model: dict[str, Any], arguments: Mapping[str, Any]
) -> Config:
    """The network in the setting that it was published in."""
    title = f"{_TITLES[family]}-{size or 'custom'}/{model['patch_size']}"
    published = "DiT-S/2"
    if model["moe"] is not None and family == "dit-moe":
        title += f"-{model['moe']['num_experts']}E{model['moe']['top_k']}A"
        published = f"DiT-MoE-{size or 'S'}/2-8E2A"
    elif model["moe"] is not None:
        if family not in ("promoe", "promoe-ec"):
            title += f"-E{model['moe']['num_experts']}"
        # ProMoE's baselines are trained as it is.
        published = "DSMoE-S/2-E16" if family == "ds-moe" else "ProMoE-S/2"
    pixels = 8 * model["image_size"]
    base = preset(published)
    values = to_dict(base)
    values["name"] = f"{title}@{pixels if model['channels'] == 4 else model['image_size']}"
    # What the setting does not say of the network: the defaults, among them float32.
    values["model"] = model
    values["objective"] = dataclasses.asdict(_objective(family, base, model, arguments))
    values["data"]["path"] = (f"data/imagenet{pixels}",)
    return from_dict(values)


def _objective(
    family: Family, base: Config, model: Mapping[str, Any], arguments: Mapping[str, Any]
) -> ObjectiveConfig:
    name = arguments.get("objective", "rectified_flow" if family == "sit" else base.objective.name)
    allowed = ("ddpm", "rectified_flow") if family in ("dit", "dit-moe") else ("rectified_flow",)
    if name not in allowed:
        raise ConfigError(
            f"objective is {name!r} in --model_json for family {family!r}; allowed: "
            f"{', '.join(allowed)}"
        )
    if name == "ddpm":
        return DDPMConfig(variance="learned_range" if model["learn_sigma"] else "fixed_small")
    if family == "ds-moe":
        return base.objective
    if family == "sit":
        for argument, expected in (("path_type", "Linear"), ("prediction", "velocity")):
            if arguments.get(argument, expected) != expected:
                raise ConfigError(
                    f"{argument} is {arguments[argument]!r} in --model_json; allowed: "
                    f"{expected!r}, as published"
                )
        return RectifiedFlowConfig(time_distribution="uniform")
    return RectifiedFlowConfig(time_scale=1 if family in ("dit", "dit-moe") else 1000)


def _moe(
    family: Family, shapes: Shapes, depth: int, width: int, arguments: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    if family not in _LAYERS:
        return None
    names = _LAYERS[family]
    sparse = _blocks_with(shapes, names.router)
    every = sparse[0] + 1
    if sparse != list(range(every - 1, depth, every)):
        raise ConfigError(
            f"the MoE blocks are {', '.join(map(str, sparse))} of {depth}; allowed: the last of "
            "every so many"
        )
    block = f"blocks.{every - 1}"
    layer = f"{block}.{names.router.partition('.')[0]}"
    num_experts = _shape(shapes, f"{block}.{names.router}", 2)[0]
    experts = f"{layer}.{names.experts}."
    hidden = _shape(shapes, f"{experts}0.{names.up}", 2)[0]
    shared = shapes.get(f"{layer}.{names.shared}.{names.up}", (0,))[0]
    if family == "ds-moe" and not shared:
        raise ConfigError(
            "the MoE blocks have no shared expert; allowed: one in each, as in the published models"
        )
    top_k, router = _router(family, num_experts, arguments)
    return {
        "router": router,
        "num_experts": num_experts,
        "top_k": top_k,
        "expert": "swiglu" if names.up == "gate_proj.weight" else "gelu",
        "hidden_ratio": _ratio(hidden, width),
        "shared_hidden_ratio": _ratio(shared, width),
        "unconditional_expert": names == _PROMOE and f"{experts}{num_experts}.{names.up}" in shapes,
        "every": every,
    }


def _router(
    family: Family, num_experts: int, arguments: Mapping[str, Any] | None
) -> tuple[int, dict[str, Any]]:
    """top_k and the router's settings: as the arguments say, or as published without any."""
    published = arguments is None
    arguments = arguments or {}
    given = _mixture(arguments)
    if family == "dit-moe":
        return arguments.get("num_experts_per_tok", _DIT_MOE_TOP_K), {"name": "top_k"}
    if family in ("promoe", "promoe-ec"):
        router = {"name": "prototype" if family == "promoe" else "prototype_expert_choice"}
        if published:
            return 1, router
        settings = {"top_k": _PROMOE_TOP_K[family], **_PROMOE_DEFAULTS, **given}
        router["activation"] = settings["router_weight_mode"]
        router["contrastive_coef"] = settings["routing_contrastive_lam"]
        router["contrastive_temperature"] = settings["routing_contrastive_temperature"]
        return settings["top_k"], router
    if family == "ds-moe":
        return _ds_moe_router(given, DS_MOE_ROUTING[num_experts] if published else None)
    if not published and "capacity" not in given:
        raise ConfigError("MoE_config.capacity is missing in --model_json; shapes do not tell it")
    router = {
        "tc-dit": {"name": "top_k"},
        "ec-dit": {"name": "expert_choice"},
        "diffmoe": {
            "name": "batch_pool",
            "capacity_coef": arguments.get("CapacityPred_loss_weight", _DIFFMOE_COEF),
            "inference": "batch",
        },
    }[family]
    return given.get("capacity", 1), router


def _ds_moe_router(
    given: Mapping[str, Any], published: tuple[int, float] | None
) -> tuple[int, dict[str, Any]]:
    if published is None:
        names = ("num_experts_per_tok", "routed_scaling_factor")
        missing = [f"MoE_config.{name}" for name in names if name not in given]
        if missing:
            raise ConfigError(f"{missing[0]} is missing in --model_json; shapes do not tell it")
        published = tuple(given[name] for name in names)
    top_k, scale = published
    groups, chosen = given.get("n_group", 1), given.get("topk_group", 1)
    if chosen != groups:
        raise ConfigError(
            f"MoE_config.topk_group is {chosen!r} in --model_json; allowed: n_group ({groups!r}), "
            "so that a token chooses among all experts, as in the published models"
        )
    # Its code never moves the bias.
    return top_k, {"name": "sigmoid_top_k", "scale": scale, "bias_rate": 0}


def _mlp_ratio(shapes: Shapes, width: int) -> float:
    """Of the dense blocks; 4 where there are none."""
    hidden = [shape[0] for key, shape in shapes.items() if key.endswith(".mlp.fc1.weight")]
    return _ratio(hidden[0], width) if hidden else 4.0


def _ratio(hidden: int, width: int) -> float:
    """hidden / width, or the float beside it that gives `hidden` again when multiplied."""
    ratio = hidden / width
    for near in (ratio, math.nextafter(ratio, math.inf), math.nextafter(ratio, 0)):
        if near * width == hidden:
            return near
    raise ConfigError(
        f"{hidden} hidden units at width {width} cannot be kept: the config holds their ratio, and "
        f"no floating-point number times {width} is {hidden}"
    )


def _check_family(family: Family, shapes: Shapes) -> None:
    found = [name for name, layer in _LAYERS.items() if _blocks_with(shapes, layer.router)]
    for bare, other, beside in _TWINS:
        if other in found:
            found = [other if any(key.endswith(beside) for key in shapes) else bare]
    found = found or ["dit", "sit"]
    if family not in found:
        raise ConfigError(
            f"family is {family!r}, but the tensors are those of {' or '.join(found)}"
        )


def _depth(shapes: Shapes) -> int:
    """How many blocks there are, which must be numbered from 0 on."""
    found = {key.split(".")[1] for key in shapes if key.startswith("blocks.")}
    if not found or found != set(map(str, range(len(found)))):
        raise ConfigError(
            f"the tensors' blocks are {', '.join(sorted(found)[:12]) or 'none'}; allowed: blocks.0 "
            "and so on, with none left out"
        )
    return len(found)


def _blocks_with(shapes: Shapes, tensor: str) -> list[int]:
    """The numbers of the blocks that have a tensor."""
    names = (key.split(".") for key in shapes if key.endswith(f".{tensor}"))
    return sorted(int(number) for blocks, number, *_ in names if blocks == "blocks")


def _shape(shapes: Shapes, key: str, axes: int) -> tuple[int, ...]:
    if key not in shapes:
        raise ConfigError(f"the checkpoint has no {key}, which tells the network's size")
    if len(shapes[key]) != axes:
        raise ConfigError(f"{key} has {len(shapes[key])} axes {shapes[key]}; expected {axes}")
    return shapes[key]
