"""What this machine's disk and processors do for a model whose experts are read."""

import dataclasses
import os
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.config import ConfigError, ModelConfig
from dit_moe.streaming.bank import Source, streamed
from dit_moe.streaming.layout import FORMAT, Layer, Leaf, Store, layers_of, rest_parameters
from dit_moe.streaming.opening import RESERVE, resident_bytes
from dit_moe.streaming.reader import Reader, buffer
from dit_moe.streaming.speed import Machine

_SAMPLE = 2**28  # bytes that are read to measure a disk
_IMAGES = (1, 8)
_TIMES = 4


class Disk(NamedTuple):
    """What reading costs."""

    bandwidth: float
    """Bytes a second, checked."""
    processor: float
    """Seconds of a processor for a byte."""


def measure_disk(folder: Path, size: int = _SAMPLE) -> Disk:
    """Writes a file into a folder, asks the system to forget it, and reads it as a store is read.

    Raises:
      OSError: the folder cannot be written.
    """
    layer = Layer("experts", 0, 1, (Leaf("w_in", "uint8", (size,)),))
    data = np.random.default_rng(0).integers(0, 256, layer.block, np.uint8)
    layer = dataclasses.replace(layer, crc32=(zlib.crc32(data.data),))
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(data.data)
        file.flush()
        os.fsync(file.fileno())
        into = buffer(layer.block)
        into[:] = 0  # of the system's pages, which are not measured
        with Reader(Path(file.name), Store(FORMAT, 0, "uint8", "", (layer,))) as reader:
            reader.forget()
            began, own = time.perf_counter(), time.thread_time()
            reader.read(0, 0, into)
            seconds, busy = time.perf_counter() - began, time.thread_time() - own
    return Disk(layer.block / seconds, busy / layer.block)


def measure(model: ModelConfig, dtype: str, disk: Disk) -> Machine:
    """Times one and two units of a network with random numbers, whose experts all are one block in
    memory, and takes the others to be like them.

    Args:
      model: the network.
      dtype: of its store.
      disk: measured, or told.

    Raises:
      ConfigError: the model has no experts; or the machine is too busy for its time to be told.
    """
    if not layers_of(model, dtype):
        raise ConfigError("memory is given for a model without experts; allowed: one with mixtures")
    rest = sum(p.size * p.dtype.itemsize for p in rest_parameters(model, dtype).values())
    held = resident_bytes() + rest + RESERVE
    few, many = _IMAGES
    units = sum(segment.repeats for segment in model.trunk)
    seconds, temporary = {}, {}
    for repeats in (1, 2):
        for images in _IMAGES:
            seconds[repeats, images], temporary[images] = _time(model, repeats, dtype, images)
    whole = {
        images: seconds[1, images]
        + max(seconds[2, images] - seconds[1, images], 0) * (units / len(model.trunk) - 1)
        for images in _IMAGES
    }
    each = (whole[many] - whole[few]) / (many - few)
    if each <= 0:
        raise ConfigError(
            f"a pass of {many} images took no longer than one of {few}: this machine is too busy "
            "to be measured; allowed: once more, when it is not"
        )
    held_each = max(temporary[many] - temporary[few], 0) / (many - few)
    return Machine(
        disk=disk.bandwidth,
        reading=disk.processor,
        fixed=max(whole[few] - few * each, 0),
        each=each,
        held=held + temporary[few] - few * held_each,
        held_each=held_each,
    )


class _OneBlocks:
    """Stands where a ring is, and gives the same numbers for every expert of a layer."""

    def __init__(self, random: np.random.Generator, layers: Sequence[Layer]):
        self._blocks = [np.zeros(layer.block, np.uint8) for layer in layers]
        for layer, block in zip(layers, self._blocks, strict=True):
            for leaf, offset in zip(layer.leaves, layer.offsets, strict=False):
                own = _numbers(random, leaf.shape, jnp.dtype(leaf.dtype))
                block[offset : offset + leaf.bytes] = own.reshape(-1).view(np.uint8)

    def block(self, layer: int, expert: int, user: object) -> np.ndarray:
        del expert, user
        return self._blocks[layer]


def _numbers(random: np.random.Generator, shape: tuple[int, ...], dtype: jnp.dtype) -> np.ndarray:
    """Such as weights are, or codes of packed ones."""
    if dtype == np.uint8:
        return random.integers(0, 256, shape, dtype)
    return random.normal(0, 0.02, shape).astype(dtype)


def _time(model: ModelConfig, repeats: int, dtype: str, images: int) -> tuple[float, int]:
    """Seconds of a pass with so many units of every segment, and the bytes that it takes on its
    way."""
    model = _shallow(model, repeats)
    layers = layers_of(model, dtype)
    source = Source(Store(FORMAT, 0, dtype, "", layers))
    random = np.random.default_rng(0)
    parameters = {
        path: jnp.asarray(_numbers(random, p.shape, p.dtype))
        for path, p in rest_parameters(model, dtype).items()
    }
    source.ring = _OneBlocks(random, layers)
    build = streamed(model, source)
    example = (
        jnp.zeros((images, *model.image_shape)),
        jnp.full(images, 0.5),
        jnp.zeros(images, jnp.int32),
    )
    run = jax.jit(lambda parameters, x, t, y: build(parameters)(x, t, y).value)
    compiled = run.lower(parameters, *example).compile()
    found = []
    for _ in range(1 + _TIMES):
        began = time.perf_counter()
        jax.block_until_ready(compiled(parameters, *example))
        found.append(time.perf_counter() - began)
    analysis: Any = compiled.memory_analysis()
    return min(found[1:]), analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def _shallow(model: ModelConfig, repeats: int) -> ModelConfig:
    if not model.segments:
        return dataclasses.replace(model, depth=repeats * model.trunk[0].unit)
    segments = tuple(
        dataclasses.replace(segment, depth=repeats * segment.unit) for segment in model.segments
    )
    depth = sum(segment.depth for segment in segments)
    return dataclasses.replace(model, segments=segments, depth=depth)
