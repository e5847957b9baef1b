"""The correspondence between this network's parameters and the peers' PyTorch tensors.

One table of entries, made from the config, drives both directions. Covered: DiT
(facebookresearch/DiT), DiT-MoE (feizc/DiT-MoE) and ProMoE's token-choice model (ali-vilab/ProMoE);
which one follows from the config's router.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from dit_moe.config import ModelConfig
from dit_moe.nn.block import group_size
from dit_moe.nn.embeddings import position_embedding
from dit_moe.nn.parameters import abstract_parameters


class Entry(NamedTuple):
    """One peer tensor and its place in this network."""

    key: str
    """The peer's name."""
    path: str
    """Ours, dotted."""
    leading: tuple[int, ...] = ()
    """Leading indices into our array: group, expert."""
    part: tuple[int, int] = (0, 1)
    """(i, n): the i-th of n equal parts of our last axis."""
    transpose: bool = False
    """PyTorch stores linear layers as [out, in]."""


class MismatchError(ValueError):
    """Tensors that do not fit the network; the message lists them."""


def from_peer(config: ModelConfig, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters by dotted path from a peer's state_dict.

    Args:
      config: the network that the tensors belong to.
      tensors: the peer's tensors under its own names, any float type. The fixed position table
        `pos_embed` is not needed.

    Raises:
      MismatchError: listing every missing, unexpected or wrongly shaped tensor.
    """
    entries = list(_entries(config))
    problems = [f"missing: {e.key}" for e in entries if e.key not in tensors]
    known = {"pos_embed", *(e.key for e in entries)}
    problems += [f"unexpected: {key}" for key in tensors if key not in known]
    parameters = {
        path: np.zeros(p.shape, np.float32) for path, p in abstract_parameters(config).items()
    }
    for entry in entries:
        if entry.key not in tensors:
            continue
        target = _view(parameters[entry.path], entry)
        value = _import_layout(tensors[entry.key], entry, config)
        if value.shape != target.shape:
            problems.append(
                f"shape of {entry.key}: {tuple(tensors[entry.key].shape)} does not fit {entry.path}"
            )
        else:
            target[...] = value
    if problems:
        raise MismatchError("; ".join(problems))
    return parameters


def to_peer(config: ModelConfig, parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The peer's state_dict from parameters (or gradients) by dotted path; bit-exact inverse."""
    tensors = {
        e.key: _export_layout(_view(parameters[e.path], e), e, config) for e in _entries(config)
    }
    side = config.image_size // config.patch_size
    return {"pos_embed": position_embedding(side, config.width)[None], **tensors}


def _entries(config: ModelConfig) -> Iterator[Entry]:
    yield from _linear("x_embedder.proj", "patch_in")
    yield from _linear("t_embedder.mlp.0", "timestep.dense_in")
    yield from _linear("t_embedder.mlp.2", "timestep.dense_out")
    yield Entry("y_embedder.embedding_table.weight", "label.table")
    yield from _linear("final_layer.adaLN_modulation.1", "modulation")
    yield from _linear("final_layer.linear", "patch_out")
    for layer in range(config.depth):
        group, position = divmod(layer, group_size(config))
        theirs, ours = f"blocks.{layer}", f"groups.blocks.{position}"
        yield from _linear(f"{theirs}.attn.qkv", f"{ours}.attention.qkv", group)
        yield from _linear(f"{theirs}.attn.proj", f"{ours}.attention.out", group)
        yield from _linear(f"{theirs}.adaLN_modulation.1", f"{ours}.modulation", group)
        if config.qk_norm:
            for norm in ("q_norm", "k_norm"):
                yield Entry(
                    f"{theirs}.attn.{norm}.weight", f"{ours}.attention.{norm}.scale", (group,)
                )
                yield Entry(f"{theirs}.attn.{norm}.bias", f"{ours}.attention.{norm}.bias", (group,))
        if config.moe is None or position < group_size(config) - 1:
            names = {"up": "fc1", "down": "fc2"}
            yield from _gelu(f"{theirs}.mlp", f"{ours}.feed_forward.experts", (group, 0), names)
        else:
            yield from _moe(config, theirs, f"{ours}.feed_forward", group)


def _moe(config: ModelConfig, theirs: str, ours: str, group: int) -> Iterator[Entry]:
    assert config.moe is not None
    if config.moe.router.name == "top_k":
        theirs, shared = f"{theirs}.moe", "shared_experts"
        yield Entry(f"{theirs}.gate.weight", f"{ours}.router.kernel", (group,), transpose=True)
    else:
        theirs, shared = f"{theirs}.mlp", "shared_expert"
        yield Entry(f"{theirs}.cluster_centers", f"{ours}.router.prototypes", (group,))
    expert = _swiglu if config.moe.expert == "swiglu" else _gelu
    for e in range(config.moe.total_experts):
        yield from expert(f"{theirs}.experts.{e}", f"{ours}.experts", (group, e))
    if config.moe.shared_hidden_ratio:
        yield from expert(f"{theirs}.{shared}", f"{ours}.shared.experts", (group, 0))


def _swiglu(theirs: str, ours: str, index: tuple[int, ...]) -> Iterator[Entry]:
    yield Entry(f"{theirs}.gate_proj.weight", f"{ours}.w_in", index, (0, 2), transpose=True)
    yield Entry(f"{theirs}.up_proj.weight", f"{ours}.w_in", index, (1, 2), transpose=True)
    yield Entry(f"{theirs}.down_proj.weight", f"{ours}.w_out", index, transpose=True)


def _gelu(
    theirs: str,
    ours: str,
    index: tuple[int, ...],
    names: Mapping[str, str] | None = None,
) -> Iterator[Entry]:
    names = names or {"up": "up_proj", "down": "down_proj"}
    for name, side in ((names["up"], "in"), (names["down"], "out")):
        yield Entry(f"{theirs}.{name}.weight", f"{ours}.w_{side}", index, transpose=True)
        yield Entry(f"{theirs}.{name}.bias", f"{ours}.b_{side}", index)


def _linear(theirs: str, ours: str, *index: int) -> Iterator[Entry]:
    yield Entry(f"{theirs}.weight", f"{ours}.kernel", index, transpose=True)
    yield Entry(f"{theirs}.bias", f"{ours}.bias", index)


def _view(array: np.ndarray, entry: Entry) -> np.ndarray:
    part, parts = entry.part
    array = array[entry.leading]
    size = array.shape[-1] // parts
    return array[..., part * size : (part + 1) * size]


def _import_layout(tensor: np.ndarray, entry: Entry, config: ModelConfig) -> np.ndarray:
    if entry.path == "patch_in.kernel":
        # Convolution [D, C, p, p] to a matrix over (p, p, C) patches.
        return tensor.transpose(2, 3, 1, 0).reshape(-1, config.width)
    return tensor.T if entry.transpose else tensor


def _export_layout(array: np.ndarray, entry: Entry, config: ModelConfig) -> np.ndarray:
    if entry.path == "patch_in.kernel":
        p = config.patch_size
        return array.reshape(p, p, config.channels, config.width).transpose(3, 2, 0, 1)
    return array.T if entry.transpose else array
