"""Writes a run folder piece by piece, so that no parameter need be in memory as a whole.

Orbax saves whole arrays. Here it saves a checkpoint of zeros, which are views of one number and
compress to nothing, in chunks of one piece each; the pieces are then written over them through
TensorStore.
"""

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from orbax.checkpoint import type_handlers
from tqdm import tqdm

from dit_moe.autoencoder.latent_space import LatentSpace, write_latent_space
from dit_moe.config import Config
from dit_moe.config.files import to_json
from dit_moe.models.parameters import stack_of
from dit_moe.runs import about, fingerprint
from dit_moe.runs.weights import write_weights
from dit_moe.storage.files import atomic, new_folder


class Source(Protocol):
    """Parameters by dotted path in pieces, each at a leading index."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of all parameters."""
        ...

    def indices(self, path: str) -> list[tuple[int, ...]]:
        """The leading indices of a parameter's pieces; they have one length."""
        ...

    def read(self, path: str, index: tuple[int, ...]) -> np.ndarray:
        """The piece at a leading index, float32."""
        ...


def write_run(
    output: Path,
    config: Config,
    space: LatentSpace | None,
    source: Source,
    *,
    only_average: bool = False,
) -> None:
    """Writes a run folder whose checkpoint, of step 0, holds the source.

    At step 0 a run's parameters and their moving average are the same; they are the same files.
    Nothing is added to them, and all of them are averaged: `train.lora` and `train.learn` of the
    config are left out.

    Args:
      output: the folder, which must not hold anything.
      config: of the run.
      space: of a model of latents.
      source: all parameters of the config's model.
      only_average: they are the moving average of a model whose parameters are not known.

    Raises:
      ConfigError: the folder holds something.
      OSError: it cannot be written. It is then not there.
    """
    with new_folder(output) as folder:
        with atomic(folder / "config.json") as temporary:
            train = dataclasses.replace(config.train, lora=None, learn=())
            temporary.write_text(to_json(dataclasses.replace(config, train=train)))
        write_latent_space(folder, space, resuming=False)
        if only_average:
            write_weights(folder, ema=True)
        step = folder / "checkpoints" / "0"
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            checkpointer.save(step / "step", args=ocp.args.StandardSave({"value": np.int32(0)}))
        _write_zeros(step / "ema", source)
        arrays = _write_pieces(step / "ema", source)
        shutil.copytree(step / "ema", step / "parameters", copy_function=_link)
        _write_about(step / "about" / "about.json", arrays)


def _write_zeros(folder: Path, source: Source) -> None:
    zeros, chunks = {}, {}
    for path, shape in source.shapes.items():
        zeros[path] = np.broadcast_to(np.float32(0), shape)
        leading = len(source.indices(path)[0])
        chunks[path] = ocp.SaveArgs(shard_axes=tuple(range(leading)))
    # Without a copy of what it saves, as nobody changes it meanwhile.
    handler = type_handlers.NumpyHandler(deepcopy_host_arrays=False)
    registry = type_handlers.create_type_handler_registry((np.ndarray, handler))
    saver = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    with ocp.Checkpointer(saver) as checkpointer:
        arguments = ocp.args.PyTreeSave({"value": zeros}, save_args={"value": chunks})
        checkpointer.save(folder, args=arguments)


def _write_pieces(folder: Path, source: Source) -> dict[str, about.Array]:
    # The folder gets its name when all is written: no need to wait for the disk at every piece.
    context = ts.Context({"file_io_sync": False})
    arrays = {}
    total = sum(4 * math.prod(shape) for shape in source.shapes.values())
    with tqdm(total=total, unit="B", unit_scale=True, dynamic_ncols=True) as bar:
        for path, shape in source.shapes.items():
            kvstore = {"driver": "ocdbt", "base": f"file://{folder}/", "path": f"value.{path}/"}
            store = ts.open({"driver": "zarr", "kvstore": kvstore}, open=True, context=context)
            array = store.result()
            found = 0
            for index in source.indices(path):
                piece = source.read(path, index)
                written = (array[index] if index else array).write(piece)
                found += _fingerprint(piece, _start(index, shape))
                written.result()
                bar.update(piece.nbytes)
            arrays[path] = about.Array(shape, "float32", found % 2**32)
    return arrays


def _start(index: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """How many elements of an array of this shape come before those at a leading index."""
    return sum(i * math.prod(shape[axis + 1 :]) for axis, i in enumerate(index))


def _fingerprint(piece: np.ndarray, start: int) -> int:
    """A piece's summand of its array's fingerprint: every bit pattern is offset by its place."""
    offset = np.uint32(start * fingerprint.GOLDEN % 2**32)
    (value,) = fingerprint.fingerprints([piece.view(np.uint32) + offset]).values()
    return value


def _write_about(path: Path, arrays: Mapping[str, about.Array]) -> None:
    items = ("parameters", "ema")
    stored = {f"{item}/{name}": array for item in items for name, array in arrays.items()}
    description = about.describe(about.measure({"step": np.int32(0)}) | stored)
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(description))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # not every file system has hard links
        shutil.copy2(source, target)


class InMemory:
    """Parameters as a source, a piece for each unit of blocks.

    Args:
      shapes: of all parameters.
      read: the piece of a parameter at an index: () or (unit,).
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        read: Callable[[str, tuple[int, ...]], np.ndarray],
    ):
        self.shapes = shapes
        self._read = read

    def indices(self, path: str) -> list[tuple[int, ...]]:
        """A unit each; () for what is not stacked."""
        if stack_of(path) is None:
            return [()]
        return [(unit,) for unit in range(self.shapes[path][0])]

    def read(self, path: str, index: tuple[int, ...]) -> np.ndarray:
        """The piece of a parameter."""
        return self._read(path, index)
