"""The correspondence between this network's parameters and the peers' PyTorch tensors.

One table of entries, made from the config, drives both directions. The peers (formats.py) share
DiT's names but for the MoE layers; whose these are follows from the router and kind of experts.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from dit_moe.config import ConfigError, ModelConfig
from dit_moe.convert.entries import Entry, gelu, linear
from dit_moe.convert.formats import layer_of
from dit_moe.models.parameters import abstract_parameters, places
from dit_moe.nn.embeddings import position_embedding
from dit_moe.runs.tensor_files import finite

_LISTED = 20
_POSITIONS = "pos_embed"


class MismatchError(ConfigError):
    """Tensors that do not fit the network; the message lists them."""


class Pieces:
    """Our parameters, piece by piece, from a peer's tensors.

    A piece is what lies at one leading index of a parameter: one layer's matrix, or one expert's.
    Only the piece that is asked for is read.

    Args:
      config: the network that the tensors belong to.
      tensors: the peer's by its own names: arrays of any float type, or whatever has `shape` and
        `dtype` and becomes an array by `np.asarray`. What is fixed (`pos_embed`, `ema_decay`) may
        be absent.

    Raises:
      MismatchError: listing every missing, unexpected or wrongly shaped tensor.
    """

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Any]):
        self.shapes = {path: p.shape for path, p in abstract_parameters(config).items()}
        self._config = config
        self._tensors = tensors
        self._entries: dict[str, dict[tuple[int, ...], list[Entry]]] = {}
        for entry in _entries(config):
            at = self._entries.setdefault(entry.path, {})
            at.setdefault(entry.leading, []).append(entry)
        self._check()

    def indices(self, path: str) -> list[tuple[int, ...]]:
        """The leading indices of a parameter's pieces."""
        return list(self._entries[path])

    def read(self, path: str, index: tuple[int, ...]) -> np.ndarray:
        """The piece of a parameter at a leading index, float32.

        Raises:
          ConfigError: a number in it is not finite.
        """
        target = np.empty(self.shapes[path][len(index) :], np.float32)
        for entry in self._entries[path][index]:
            value = finite(entry.key, "the checkpoint", np.asarray(self._tensors[entry.key]))
            _part(target, entry)[...] = _import_layout(value, entry, self._config)
        return target

    def _check(self) -> None:
        fixed = _fixed(self._config)
        known = {key: array.shape for key, array in fixed.items()}
        problems = []
        for path, at in self._entries.items():
            for index, entries in at.items():
                piece = np.broadcast_to(np.float32(0), self.shapes[path][len(index) :])
                for entry in entries:
                    part = _part(piece, entry)
                    known[entry.key] = _export_layout(part, entry, self._config).shape
                    if entry.key not in self._tensors:
                        problems.append(f"missing: {entry.key}")
        problems += [f"unexpected: {key}" for key in self._tensors if key not in known]
        for key, tensor in self._tensors.items():
            if key in known and tuple(tensor.shape) != known[key]:
                problems.append(
                    f"shape of {key}: {tuple(tensor.shape)}, but {known[key]} is expected"
                )
            elif key in known and not jnp.issubdtype(tensor.dtype, jnp.floating):
                problems.append(f"type of {key}: {tensor.dtype}, which is no float type")
        if not problems:
            problems += self._check_fixed(fixed)
        if problems:
            listed = [f"\n  {problem}" for problem in problems[:_LISTED]]
            rest = len(problems) - len(listed)
            more = f"\n  and {rest:,} more" if rest else ""
            count = f"{len(problems):,} tensor{'s do' if len(problems) > 1 else ' does'}"
            raise MismatchError(f"{count} not fit the network:{''.join(listed)}{more}")

    def _check_fixed(self, fixed: Mapping[str, np.ndarray]) -> list[str]:
        """What is fixed here is not kept, so that another value would be lost."""
        return [
            f"values of {key}: they are not the fixed ones of this network"
            for key, expected in fixed.items()
            # bfloat16 keeps 8 bits. What is not finite is not below.
            if key in self._tensors
            and not np.abs(np.asarray(self._tensors[key], np.float32) - expected).max() < 0.01
        ]


def from_peer(config: ModelConfig, tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """All parameters, float32 by dotted path, from a peer's state_dict; see `Pieces`.

    Raises:
      MismatchError: listing every missing, unexpected or wrongly shaped tensor.
    """
    pieces = Pieces(config, tensors)
    parameters = {}
    for path, shape in pieces.shapes.items():
        parameters[path] = np.empty(shape, np.float32)
        for index in pieces.indices(path):
            parameters[path][index] = pieces.read(path, index)
    return parameters


def to_peer(config: ModelConfig, parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The peer's state_dict from parameters (or gradients) by dotted path; bit-exact inverse."""
    tensors = {
        e.key: _export_layout(_part(parameters[e.path][e.leading], e), e, config)
        for e in _entries(config)
    }
    return {**_fixed(config), **tensors}


def _fixed(config: ModelConfig) -> dict[str, np.ndarray]:
    """The peer's tensors that are no parameters here, because nothing changes them."""
    fixed = {}
    if config.position == "sincos":
        fixed[_POSITIONS] = position_embedding(config.grid, config.width)[None]
    for layer, place in enumerate(places(config)):
        if place.moe is not None:
            peer_layer = layer_of(place.moe)
            tensors = {} if peer_layer.fixed is None else peer_layer.fixed(place.moe)
            for name, value in tensors.items():
                fixed[f"blocks.{layer}.{peer_layer.name}.{name}"] = value
    return fixed


def _entries(config: ModelConfig) -> Iterator[Entry]:
    yield from linear("x_embedder.proj", "patch_in")
    yield from linear("t_embedder.mlp.0", "timestep.dense_in")
    yield from linear("t_embedder.mlp.2", "timestep.dense_out")
    yield Entry("y_embedder.embedding_table.weight", "label.table")
    yield from linear("final_layer.adaLN_modulation.1", "modulation")
    yield from linear("final_layer.linear", "patch_out")
    for layer, (prefix, unit, moe) in enumerate(places(config)):
        theirs, ours = f"blocks.{layer}", prefix.removesuffix(".")
        yield from linear(f"{theirs}.attn.qkv", f"{ours}.attention.qkv", unit)
        yield from linear(f"{theirs}.attn.proj", f"{ours}.attention.out", unit)
        yield from linear(f"{theirs}.adaLN_modulation.1", f"{ours}.modulation", unit)
        if config.qk_norm:
            for norm in ("q_norm", "k_norm"):
                yield Entry(
                    f"{theirs}.attn.{norm}.weight", f"{ours}.attention.{norm}.scale", (unit,)
                )
                yield Entry(f"{theirs}.attn.{norm}.bias", f"{ours}.attention.{norm}.bias", (unit,))
        if moe is None:
            yield from gelu(f"{theirs}.mlp", f"{ours}.feed_forward.experts", (unit, 0))
        else:
            yield from layer_of(moe).entries(moe, theirs, f"{ours}.feed_forward", unit)


def _part(array: np.ndarray, entry: Entry) -> np.ndarray:
    """The entry's part of a piece; a view."""
    part, parts = entry.part
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
