"""Which network a peer's tensors are: from their names and shapes, and its constructor arguments.

Shapes tell the size and kind. Heads and the experts per token they do not: those come from the
published model of the same size, or from the peer's constructor arguments (`--model_json`).
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dit_moe.config import Config, ConfigError, DDPMConfig, ObjectiveConfig
from dit_moe.config.files import from_dict, to_dict
from dit_moe.config.presets import preset
from dit_moe.convert import Family
from dit_moe.convert.formats import PEERS
from dit_moe.convert.peer import Peer, mixture_of
from dit_moe.convert.shapes import Shapes, blocks_with, depth_of, mlp_ratio, ratio, shape_of
from dit_moe.storage.records import read_json

_IMAGENET = 1000  # classes


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
    peer, depth = PEERS[family], depth_of(shapes)
    _check_family(family, shapes)
    width, channels, patch, _ = shape_of(shapes, "x_embedder.proj.weight", 4)
    rows = shape_of(shapes, "y_embedder.embedding_table.weight", 2)[0]
    out = shape_of(shapes, "final_layer.linear.weight", 2)[0] // patch**2
    size, heads = _published_size(peer.sizes(shapes), depth, width)
    side = 32 if arguments is None else arguments.get("input_size", 32)
    if "pos_embed" in shapes:
        side = patch * math.isqrt(shape_of(shapes, "pos_embed", 3)[1])
    if not isinstance(side, int):
        raise ConfigError(f"input_size is {side!r} in --model_json; allowed: a whole number")
    if arguments is None and size is None:
        raise ConfigError(
            f"the tensors are of a network of width {width} and depth {depth}, which is no "
            "published one, and do not tell its heads; allowed: with --model_json, a JSON file of "
            "the constructor's arguments"
        )
    moe = _moe(peer, shapes, depth, width, arguments)
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
        "mlp_ratio": mlp_ratio(shapes, width),
        "num_classes": rows - 1,
        "label_dropout": arguments.get("class_dropout_prob", 0.1),
        "learn_sigma": out == 2 * channels,
        "qk_norm": "blocks.0.attn.q_norm.weight" in shapes,
        "moe": moe,
        **peer.blocks(shapes),
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
    _refuse_contradictions(arguments, {**told, **peer.told(model)})
    if moe is not None:
        experts = {"num_experts": moe["num_experts"], "num_routed_experts": moe["num_experts"]}
        _refuse_contradictions({**arguments, **mixture_of(arguments)}, experts)
    if model["heads"] is None:
        raise ConfigError("num_heads is missing in --model_json; shapes do not tell it")
    return _experiment(family, size, model, arguments)


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


def _experiment(
    family: Family, size: str | None, model: dict[str, Any], arguments: Mapping[str, Any]
) -> Config:
    """The network in the setting that it was published in."""
    peer = PEERS[family]
    suffix, published = peer.setting(size, model["moe"])
    title = f"{peer.title}-{size or 'custom'}/{model['patch_size']}{suffix}"
    pixels = 8 * model["image_size"]
    base = preset(published)
    values = to_dict(base)
    values["name"] = f"{title}@{pixels if model['channels'] == 4 else model['image_size']}"
    # What the setting does not say of the network: the defaults, among them float32.
    values["model"] = model
    values["objective"] = dataclasses.asdict(_objective(family, base.objective, model, arguments))
    values["data"]["path"] = (f"data/imagenet{pixels}",)
    return from_dict(values)


def _objective(
    family: Family,
    base: ObjectiveConfig,
    model: Mapping[str, Any],
    arguments: Mapping[str, Any],
) -> ObjectiveConfig:
    peer = PEERS[family]
    allowed = ("ddpm", "rectified_flow") if peer.may_be_ddpm else ("rectified_flow",)
    name = arguments.get("objective", base.name if peer.may_be_ddpm else "rectified_flow")
    if name not in allowed:
        raise ConfigError(
            f"objective is {name!r} in --model_json for family {family!r}; allowed: "
            f"{', '.join(allowed)}"
        )
    if name == "ddpm":
        return DDPMConfig(variance="learned_range" if model["learn_sigma"] else "fixed_small")
    return peer.flow(base, arguments)


def _moe(
    peer: Peer, shapes: Shapes, depth: int, width: int, arguments: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    if peer.layer is None:
        return None
    names = peer.layer
    sparse = blocks_with(shapes, names.router)
    every = sparse[0] + 1
    if sparse != list(range(every - 1, depth, every)):
        raise ConfigError(
            f"the MoE blocks are {', '.join(map(str, sparse))} of {depth}; allowed: the last of "
            "every so many"
        )
    block = f"blocks.{every - 1}"
    num_experts = shape_of(shapes, f"{block}.{names.router}", 2)[0]
    experts = f"{block}.{names.name}.{names.experts}."
    hidden = shape_of(shapes, f"{experts}0.{names.up}", 2)[0]
    shared = shapes.get(f"{block}.{names.name}.{names.shared}.{names.up}", (0,))[0]
    if names.must_share and not shared:
        raise ConfigError(
            "the MoE blocks have no shared expert; allowed: one in each, as in the published models"
        )
    top_k, router = peer.router(num_experts, arguments)
    further = f"{experts}{num_experts}.{names.up}"
    return {
        "router": router,
        "num_experts": num_experts,
        "top_k": top_k,
        "expert": names.expert,
        "hidden_ratio": ratio(hidden, width),
        "shared_hidden_ratio": ratio(shared, width),
        "unconditional_expert": names.prototypes and further in shapes,
        "every": every,
    }


def _check_family(family: Family, shapes: Shapes) -> None:
    layers = {
        name: peer.layer
        for name, peer in PEERS.items()
        if peer.layer is not None and blocks_with(shapes, peer.layer.router)
    }
    # Routers of one name are told apart by what lies beside.
    told = [
        name
        for name, layer in layers.items()
        if layer.told_by is not None and any(key.endswith(layer.told_by) for key in shapes)
    ]
    bare = [name for name, layer in layers.items() if layer.told_by is None]
    found: list[str] = [*(told or bare)]
    found = found or ["dit", "sit"]
    if family not in found:
        raise ConfigError(
            f"family is {family!r}, but the tensors are those of {' or '.join(found)}"
        )
