"""Passes of a model whose experts are read: beside the longer of disk and computing, beside reading
on demand, and beside what is predicted.

    python -m benchmarks.streaming --preset DiT-MoE-S/2-8E2A --images 4 --folder /tmp/bench

Its parameters are random numbers. The system is asked to forget the file before every measurement.
"""

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.config import Config
from dit_moe.config.presets import preset
from dit_moe.models.parameters import abstract_parameters, stack_of
from dit_moe.runs.loading import OneByOne
from dit_moe.streaming.bank import streamed
from dit_moe.streaming.layout import layers_of
from dit_moe.streaming.making import write_store
from dit_moe.streaming.measuring import measure_disk
from dit_moe.streaming.opening import is_store, open_store
from dit_moe.streaming.ring import least_bytes

PASSES = 3


def write_random(config: Config, folder: Path, dtype: str) -> None:
    """A store of random numbers, made without holding them."""

    def parts() -> Iterator[tuple[str, int | None, np.ndarray]]:
        random = np.random.default_rng(0)
        for path, shape in sorted(abstract_parameters(config.model).items()):
            units = [None] if stack_of(path) is None else range(shape.shape[0])
            own = shape.shape if units == [None] else shape.shape[1:]
            for unit in units:
                yield path, unit, random.random(own, np.float32) * 0.04 - 0.02

    layers = layers_of(config.model, dtype)
    read = OneByOne(config, 0, parts())
    write_store(read, layers, folder.parent, folder, ema=False, dtype=dtype)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="DiT-MoE-S/2-8E2A")
    parser.add_argument("--images", type=int, default=4, help="in a pass (default: 4)")
    parser.add_argument("--folder", type=Path, required=True, help="for the store; new")
    parser.add_argument("--dtype", default="float16")
    arguments = parser.parse_args()
    config = preset(arguments.preset)
    if not is_store(arguments.folder):
        write_random(config, arguments.folder, arguments.dtype)
    opened = open_store(arguments.folder, config.model, ema=False)
    build, images = streamed(config.model, opened.source), arguments.images
    example = jnp.zeros((images, *config.model.image_shape)), jnp.full(images, 0.5)
    label_N = jnp.zeros(images, jnp.int32)
    run = jax.jit(lambda parameters, x, t, y: build(parameters)(x, t, y).value)

    def seconds(budget: int, *, ahead: bool = True) -> tuple[float, int]:
        """Of a pass after the first, and what it reads."""
        ring = opened.fill(budget, ahead=ahead)
        found = []
        for _ in range(1 + PASSES):
            ring.forget()
            began = time.perf_counter()
            jax.block_until_ready(run(opened.rest, *example, label_N))
            found.append(time.perf_counter() - began)
        ring.close()
        return sum(found[1:]) / PASSES, ring.streamed_bytes

    disk = measure_disk(arguments.folder.parent)
    computing, _ = seconds(opened.store.bytes)
    print("| budget MB | read MB | ahead s | on demand s | computing s | reading s | predicted s |")
    print("|---|---|---|---|---|---|---|")
    least, most = least_bytes(opened.store), opened.store.bytes
    for budget in (least, (least + most) // 2, most - opened.store.layers[0].bytes):
        ahead, read = seconds(budget)
        demand, _ = seconds(budget, ahead=False)
        reading = read / disk.bandwidth
        busy = computing + read * disk.processor / len(os.sched_getaffinity(0))
        row = (ahead, demand, computing, reading, max(reading, busy))
        numbers = " | ".join(f"{number:.3g}" for number in row)
        print(f"| {budget / 1e6:.0f} | {read / 1e6:.0f} | {numbers} |")


if __name__ == "__main__":
    main()
