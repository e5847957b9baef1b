"""DiT as the diffusers package stores it (DiTTransformer2DModel), in DiT's own names, and back.

Such a folder has `config.json` and `diffusion_pytorch_model.safetensors` (or shards, or `.bin`); a
pipeline's folder has it as `transformer`. Queries, keys and values are apart, and every block keeps
the embedding of time and label, of which this network and DiT's own code have one.

The weights are read as DiT's code means them. diffusers' class computes another thing of them in
one place: its frequencies of the time are 10000^(-i/127), DiT's 10000^(-i/128).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dit_moe.config import ConfigError, ModelConfig
from dit_moe.runs.checkpoint_files import read_file
from dit_moe.runs.tensor_files import StoredTensor
from dit_moe.storage.records import read_json

STEM = "diffusion_pytorch_model"
_CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")
# Theirs and DiT's; of a block, within it.
_OUTSIDE = {
    "pos_embed.proj": "x_embedder.proj",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
}
_BLOCK = {
    "norm1.linear": "adaLN_modulation.1",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}
_EMBEDDERS = {
    "norm1.emb.timestep_embedder.linear_1.weight": "t_embedder.mlp.0.weight",
    "norm1.emb.timestep_embedder.linear_1.bias": "t_embedder.mlp.0.bias",
    "norm1.emb.timestep_embedder.linear_2.weight": "t_embedder.mlp.2.weight",
    "norm1.emb.timestep_embedder.linear_2.bias": "t_embedder.mlp.2.bias",
    "norm1.emb.class_embedder.embedding_table.weight": "y_embedder.embedding_table.weight",
}
_QKV = tuple(f"attn1.to_{part}" for part in "qkv")
_KINDS = ("weight", "bias")
# What this network has for arguments of the class that shapes do not tell.
_FIXED = {
    "norm_type": "ada_norm_zero",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
}


def find_diffusers(path: Path) -> Path | None:
    """The folder of the network, if the path is one or a pipeline's."""
    for folder in (path, path / "transformer"):
        if any(folder.glob(f"{STEM}*")):
            return folder
    return None


def read_diffusers(folder: Path) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """The tensors by DiT's names, and the arguments of DiT's constructor that `config.json` tells.

    Raises:
      ConfigError: a file is missing or damaged, the network is another one, or its blocks have
        embeddings of their own.
    """
    arguments = _read_arguments(folder / "config.json")
    forms = ("safetensors.index.json", "safetensors", "bin.index.json", "bin")
    names = [f"{STEM}.{form}" for form in forms]
    weights = next((folder / name for name in names if (folder / name).is_file()), None)
    if weights is None:
        raise ConfigError(f"checkpoint is {str(folder)!r}, which has none of {', '.join(names)}")
    return _to_dit(folder, read_file(weights)), arguments


def to_diffusers(depth: int, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a folder from DiT's state_dict."""
    renamed = {}
    for theirs, ours in _OUTSIDE.items():
        for kind in _KINDS:
            renamed[f"{theirs}.{kind}"] = tensors[f"{ours}.{kind}"]
    for layer in range(depth):
        block = f"transformer_blocks.{layer}"
        for theirs, ours in _EMBEDDERS.items():
            renamed[f"{block}.{theirs}"] = tensors[ours]
        for kind in _KINDS:
            for theirs, ours in _BLOCK.items():
                renamed[f"{block}.{theirs}.{kind}"] = tensors[f"blocks.{layer}.{ours}.{kind}"]
            qkv = np.split(tensors[f"blocks.{layer}.attn.qkv.{kind}"], 3)
            for theirs, part in zip(_QKV, qkv, strict=True):
                renamed[f"{block}.{theirs}.{kind}"] = part
    return renamed


def diffusers_config(model: ModelConfig) -> dict[str, Any]:
    """`config.json` of a folder, for a network that DiT's code has.

    Raises:
      ConfigError: the class has no such feed-forward.
    """
    if model.mlp_ratio != 4:
        raise ConfigError(
            f"format 'diffusers' has no such network: model.mlp_ratio is {model.mlp_ratio!r} "
            "(allowed: 4)"
        )
    return {
        "_class_name": _CLASSES[0],
        **_FIXED,
        "attention_head_dim": model.width // model.heads,
        "in_channels": model.channels,
        "norm_eps": 1e-6,
        "num_attention_heads": model.heads,
        "num_embeds_ada_norm": model.num_classes,
        "num_layers": model.depth,
        "out_channels": model.out_channels,
        "patch_size": model.patch_size,
        "sample_size": model.image_size,
    }


def _read_arguments(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path)
        kind = config["_class_name"]
    except (OSError, ConfigError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} tells no diffusers class: {type(error).__name__}: {error}"
        ) from None
    if kind not in _CLASSES:
        raise ConfigError(f"_class_name is {kind!r} in {path}; allowed: {', '.join(_CLASSES)}")
    for name, value in _FIXED.items():
        if config.get(name, value) != value:
            raise ConfigError(f"{name} is {config[name]!r} in {path}; allowed: {value!r}")
    heads, head_width = config.get("num_attention_heads"), config.get("attention_head_dim")
    told = {
        "num_heads": heads,
        "hidden_size": heads * head_width if heads and head_width else None,
        "depth": config.get("num_layers"),
        "input_size": config.get("sample_size"),
        "in_channels": config.get("in_channels"),
        "patch_size": config.get("patch_size"),
        "num_classes": config.get("num_embeds_ada_norm"),
    }
    return {name: value for name, value in told.items() if value is not None}


def _to_dit(folder: Path, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Renamed; what has no place keeps its name, and is found by the check that follows."""
    renamed: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        if name == "pos_embed.pos_embed":  # older versions stored it
            renamed["pos_embed"] = tensor
        elif not name.startswith("transformer_blocks."):
            renamed[f"{_OUTSIDE[stem]}.{kind}" if stem in _OUTSIDE else name] = tensor
        else:
            layer, _, rest = name.removeprefix("transformer_blocks.").partition(".")
            within = rest.removesuffix(f".{kind}")
            if rest in _EMBEDDERS:
                _check_shared(folder, tensors, name, f"transformer_blocks.0.{rest}")
                renamed[_EMBEDDERS[rest]] = tensor
            elif within in _BLOCK:
                renamed[f"blocks.{layer}.{_BLOCK[within]}.{kind}"] = tensor
            elif within in _QKV:
                names = [f"transformer_blocks.{layer}.{part}.{kind}" for part in _QKV]
                parts = [tensors[name] for name in names if name in tensors]
                # Of one shape, or they could not be joined.
                if len(parts) == 3 and len({part.shape for part in parts}) == 1:
                    renamed[f"blocks.{layer}.attn.qkv.{kind}"] = _join(parts)
            else:
                renamed[name] = tensor
    return renamed


def _check_shared(folder: Path, tensors: Mapping[str, StoredTensor], name: str, first: str) -> None:
    if name == first or first not in tensors:
        return
    if not np.array_equal(np.asarray(tensors[name]), np.asarray(tensors[first])):
        raise ConfigError(
            f"{name} in {folder} differs from {first}; allowed: one embedding of time and label in "
            "all blocks, as in folders made from DiT's checkpoints"
        )


def _join(parts: list[StoredTensor]) -> StoredTensor:
    """One above the other, read when it is asked for."""
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return StoredTensor(
        shape, parts[0].dtype, lambda: np.concatenate([np.asarray(part) for part in parts])
    )
