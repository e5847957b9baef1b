"""Passes of a model whose experts are read: beside the longer of disk and computing, beside reading
on demand, and beside what is predicted; once with the disk as it is, and once with one that is
slowed until reading takes as long as computing.

    python -m benchmarks.streaming --preset DiT-MoE-S/2-8E2A --images 4 --folder /tmp/bench

Its parameters are random numbers. The system is asked to forget the file before every measurement.
"""

import argparse
import contextlib
import math
import statistics
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
from dit_moe.streaming.layout import EXPERTS, Store, layers_of
from dit_moe.streaming.making import write_store
from dit_moe.streaming.measuring import measure_disk
from dit_moe.streaming.opening import is_store, open_store
from dit_moe.streaming.reader import Reader
from dit_moe.streaming.ring import Ring, least_bytes, pinned_layers

PASSES = 5


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


class _SlowReader(Reader):
    """A disk of a bandwidth that is told: what is read sooner waits, without a processor's time."""

    def __init__(self, path: Path, store: Store, bandwidth: float):
        super().__init__(path, store)
        self._bandwidth = bandwidth

    def read(self, layer: int, expert: int, into: np.ndarray) -> None:
        """See `Reader.read`."""
        began = time.perf_counter()
        super().read(layer, expert, into)
        due = began + self._store.layers[layer].block / self._bandwidth
        time.sleep(max(due - time.perf_counter(), 0))


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

    def seconds(budget: int, bandwidth: float, *, ahead: bool = True) -> float:
        """Of a pass after the first: the median."""
        reader = _SlowReader(opened.folder / EXPERTS, opened.store, bandwidth)
        with contextlib.closing(Ring(reader, opened.store, budget, ahead=ahead)) as ring:
            opened.source.ring = ring
            found = []
            for _ in range(1 + PASSES):
                ring.forget()
                began = time.perf_counter()
                jax.block_until_ready(run(opened.rest, *example, label_N))
                found.append(time.perf_counter() - began)
        return statistics.median(found[1:])

    disk, sizes = measure_disk(arguments.folder.parent), [x.bytes for x in opened.store.layers]
    print(
        "| disk GB/s | budget MB | read MB | computing s | reading s | predicted s | ahead s "
        "| over the longer | over on demand |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    least, most = least_bytes(opened.store), opened.store.bytes
    for equal in (False, True):
        for budget in (least, (least + most) // 2, most - sizes[0]):
            stay = pinned_layers(sizes, budget)
            read = sum(size for size, stays in zip(sizes, stay, strict=True) if not stays)
            computing = seconds(most, math.inf)
            bandwidth = min(disk.bandwidth, read / computing) if equal else disk.bandwidth
            limit = bandwidth if equal else math.inf
            ahead, demand = seconds(budget, limit), seconds(budget, limit, ahead=False)
            reading = read / bandwidth
            predicted = max(reading, computing + read * disk.processor)
            row = (computing, reading, predicted, ahead)
            numbers = " | ".join(f"{number:.3g}" for number in row)
            ratios = f"{ahead / max(computing, reading):.2f} | {ahead / demand:.2f}"
            print(
                f"| {bandwidth / 1e9:.3g} | {budget / 1e6:.0f} | {read / 1e6:.0f} | {numbers} "
                f"| {ratios} |"
            )


if __name__ == "__main__":
    main()
