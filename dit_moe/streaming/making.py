"""Stores made from runs and open folders, a parameter at a time."""

import dataclasses
import hashlib
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dit_moe.config import ConfigError
from dit_moe.models.parameters import stack_of
from dit_moe.runs.loading import OneByOne, load_each, locate
from dit_moe.runs.model_folder import write_beside
from dit_moe.runs.open_folder import STORE
from dit_moe.runs.tensor_files import finite, write_safetensors
from dit_moe.runs.weights import write_weights
from dit_moe.storage.files import new_folder
from dit_moe.storage.records import write_record
from dit_moe.streaming.layout import (
    DTYPES,
    EXPERTS,
    FORMAT,
    REST,
    Layer,
    Store,
    layers_of,
    stored_parameters,
)


def make_store(
    workdir: str | Path,
    output: Path,
    *,
    ema: bool,
    checkpoint: str = "newest",
    dtype: str | None = None,
) -> Store:
    """Writes the store of a run into a new folder.

    Args:
      workdir: a run folder, an open folder, or a name on the Hugging Face hub. `load_each` tells
        what is held of it at a time; beside that, all parameters but the experts.
      output: new.
      ema: the moving average of the parameters rather than the parameters.
      checkpoint: of a run, see `Checkpoints.find`.
      dtype: one of `DTYPES`, of the matrices that the network casts before it uses them, and that
        are not packed; None: that of its computation, by which nothing is lost.

    Raises:
      ConfigError: the run cannot be read, has no experts, or does not fit on the disk; or numbers
        are too large for the dtype.
      OSError: the output cannot be written.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; allowed: {', '.join(DTYPES)}")
    folder = locate(workdir)
    read = load_each(folder, ema=ema, checkpoint=checkpoint)
    dtype = dtype or read.config.model.dtype
    layers = layers_of(read.config.model, dtype)
    if not layers:
        raise ConfigError(
            f"workdir is {str(workdir)!r}, a model without experts to store; allowed: a model with "
            "mixtures"
        )
    return write_store(read, layers, folder, output, ema=ema, dtype=dtype)


def write_store(
    read: OneByOne, layers: tuple[Layer, ...], folder: Path, output: Path, *, ema: bool, dtype: str
) -> Store:
    """Writes a store of parameters that come one after another.

    Args:
      read: sorted by path.
      layers: as of `layers_of`.
      folder: of the model, for what lies beside its parameters.
      output: as of `make_store`, with the following.
      ema: the parameters are the moving average.
      dtype: one of `DTYPES`.

    Raises:
      ConfigError, OSError: as of `make_store`.
    """
    store = Store(FORMAT, read.step, dtype, "", layers)
    with new_folder(output) as target:
        free = shutil.disk_usage(target).free
        if store.bytes > free:
            raise ConfigError(
                f"output is {str(output)!r}, where {free / 1e9:.3g} GB are free; allowed: where "
                f"the experts' {store.bytes / 1e9:.3g} GB fit"
            )
        digest, rest = _write_experts(target / EXPERTS, read, store, folder)
        write_safetensors(target / REST, rest, form="dit_moe")
        write_weights(target, ema=ema, files=(REST,))
        write_beside(target, folder, read.config)
        checked = tuple(_with_checksums(target / EXPERTS, store))
        store = dataclasses.replace(store, weights=digest, layers=checked)
        write_record(target / STORE, store)
    return store


def _write_experts(
    path: Path, read: OneByOne, store: Store, folder: Path
) -> tuple[str, dict[str, np.ndarray]]:
    """Writes every part to its place, and returns the digest of all and the parameters that are no
    experts'."""
    digest, last = hashlib.sha256(), None
    rest: dict[str, list[np.ndarray]] = {}
    stored = stored_parameters(read.config.model, store.dtype)
    places = {
        (f"{layer.path}.{leaf.name}", layer.unit): (number, index)
        for number, layer in enumerate(store.layers)
        for index, leaf in enumerate(layer.leaves)
    }
    with path.open("xb", buffering=0) as file:
        os.truncate(file.fileno(), store.bytes)
        for name, unit, array in read.parts:
            with np.errstate(over="ignore"):
                part = np.asarray(array, stored[name].dtype, order="C")
            finite(name, f"{folder} as {part.dtype}", part)
            if name != last:
                digest.update(name.encode())
                last = name
            digest.update(part.reshape(-1).view(np.uint8).data)
            place = None if unit is None else places.get((name, unit))
            if place is not None:
                _write_part(file.fileno(), store, *place, part)
            else:
                rest.setdefault(name, []).append(part)
    joined = {
        name: parts[0] if stack_of(name) is None else np.stack(parts)
        for name, parts in rest.items()
    }
    return digest.hexdigest(), joined


def _write_part(descriptor: int, store: Store, number: int, index: int, part: np.ndarray) -> None:
    """The leaf of this index of all experts of a layer."""
    layer, start = store.layers[number], store.starts[number]
    for expert, tensor in enumerate(part):
        whole = tensor.reshape(-1).view(np.uint8).data
        offset, done = start + expert * layer.block + layer.offsets[index], 0
        while done < len(whole):
            done += os.pwrite(descriptor, whole[done:], offset + done)


def _with_checksums(path: Path, store: Store) -> Iterator[Layer]:
    """The layers with the checksums of what was written."""
    with path.open("rb") as file:
        for layer in store.layers:
            found = tuple(zlib.crc32(file.read(layer.block)) for _ in range(layer.experts))
            yield dataclasses.replace(layer, crc32=found)
