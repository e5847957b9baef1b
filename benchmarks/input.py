"""The input pipeline beside raw reads of the same records, and beside what a train step consumes.

Latents of 256-px pictures in a prepared set, read in random order. Prints images per second, their
ratios, and the memory after each of three epochs.
"""

import argparse
import itertools
import os
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from dit_moe.autoencoder.latent_space import AutoencoderCard
from dit_moe.config import Config, MeshConfig
from dit_moe.config.files import load_file
from dit_moe.data.pipeline import batches
from dit_moe.data.prepared import features, finish, shard_name, write_shard
from dit_moe.data.sources import build_sources
from dit_moe.devices.mesh import batch_sharding, build_mesh
from dit_moe.runs.state import init_state
from dit_moe.training.step import build_step

SHAPE = (32, 32, 4)
BATCH = 256
H100_BATCHES = 10
"""Batches of 256 latents a second that an S/2 step takes on one H100-class accelerator."""


def write_set(folder: Path, count: int) -> None:
    """`count` latents of noise: what they show does not matter here."""
    fields = features(SHAPE, [str(c) for c in range(1000)], latents=True)
    rng = np.random.default_rng(0)
    log_variance = np.full((2, *SHAPE), -8, np.float16)
    shards = []
    for shard in range(4):
        examples = (
            {
                "mean": (5 * rng.standard_normal((2, *SHAPE), np.float32)).astype(np.float16),
                "log_variance": log_variance,
                "label": int(rng.integers(1000)),
                "key": f"{shard}/{i}",
            }
            for i in range(count // 4)
        )
        shards.append(write_shard(folder / shard_name("noise", shard, 4), fields, examples))
    finish(
        folder,
        name="noise",
        image_size=256,
        shape=SHAPE,
        classes=[str(c) for c in range(1000)],
        autoencoder=AutoencoderCard("none", "0", 0.18215),
        shards=shards,
        description="latents of noise",
    )


def resident_mib() -> float:
    """Resident memory of this process now, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def raw_rate(folder: Path, count: int) -> float:
    """Records per second, as bytes, in random order, as many at a time as a batch has."""
    source = ArrayRecordDataSource(sorted(str(p) for p in folder.glob("*.array_record*")))
    order = np.random.default_rng(0).permutation(count).tolist()
    begin = time.perf_counter()
    for first in range(0, count, BATCH):
        source.__getitems__(order[first : first + BATCH])
    return count / (time.perf_counter() - begin)


def step_rate(config: Config, batch_size: int) -> float:
    """Images per second that a train step of the config takes here."""
    mesh = build_mesh(MeshConfig())
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch_size, *SHAPE), np.float32)
    with jax.set_mesh(mesh):
        state = init_state(config.model, config.train, mesh, config.seed)
        step = jax.jit(
            build_step(config.model, config.objective, config.train, config.seed), donate_argnums=0
        )
        arrays = jax.device_put((x, np.zeros(batch_size, np.int32)), batch_sharding(mesh))
        state, metrics = step(state, *arrays)
        metrics["loss"].block_until_ready()
        begin = time.perf_counter()
        for _ in range(3):
            state, metrics = step(state, *arrays)
        metrics["loss"].block_until_ready()
    return 3 * batch_size / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=8192, help="in the set (default: 8192)")
    parser.add_argument("--step_batch", type=int, default=8, help="images per step (default: 8)")
    arguments = parser.parse_args()
    count = arguments.examples

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_set(folder, count)
        config = load_file("configs/dit.py:S/2", ["--config.data.path=" + name])
        stream = batches(build_sources(config.data, config.model), config.data, BATCH, config.seed)
        next(stream)
        print(f"{os.cpu_count()} cores, {count:,} records of {SHAPE}, batches of {BATCH}")
        rates, raw = [], []
        for epoch in range(3):
            raw.append(raw_rate(folder, count))
            for _ in itertools.islice(stream, 20):  # what was read ahead meanwhile
                pass
            begin = time.perf_counter()
            for _ in itertools.islice(stream, count // BATCH):
                pass
            rates.append(count / (time.perf_counter() - begin))
            print(
                f"epoch {epoch + 1}: pipeline {rates[-1]:,.0f} images/s, {rates[-1] / raw[-1]:.2f} "
                f"of raw reads, {resident_mib():,.0f} MiB resident"
            )
        step = step_rate(config, arguments.step_batch)
    rate = float(np.median(rates))
    print(f"pipeline over a DiT-S/2 step here ({step:.1f} images/s): {rate / step:.0f} times")
    print(f"pipeline over {H100_BATCHES} batches/s: {rate / (H100_BATCHES * BATCH):.2f} times")


if __name__ == "__main__":
    main()
