"""Batches for training: shuffled, endless, a function of (seed, step)."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding

from dit_moe.config import ConfigError, DataConfig
from dit_moe.data.sources import Record, Source

# A few batches ahead are enough, and all of grain's default (500) would be gigabytes.
_READ = grain.ReadOptions(num_threads=8, prefetch_buffer_size=8)
_ON_DEVICE = 2  # batches ahead


class Batch(NamedTuple):
    """Examples."""

    x: np.ndarray | jax.Array
    """[n, H, W, C] float32; on the host, n is this host's share of the batch. The two of a pair
    (`data.pair`) lie one after another."""
    label: np.ndarray | jax.Array
    """[n] int32."""


def batches(
    sources: Sequence[Source],
    data: DataConfig,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    *,
    host: int = 0,
    num_hosts: int = 1,
) -> Iterator[Batch]:
    """Yields the batch of `first_step`, then of the next, without end, on the host.

    Every epoch is shuffled anew over the whole data set; a batch may span two epochs, so that no
    example is left out. Host h of H yields the h-th of H equal parts of each batch: parts joined
    in order are the batch of one host, so a run may go on with another number of hosts. With
    several sources, grain's mixture says whose turn a step is.
    """
    return iter(_dataset(sources, data, batch_size, seed, first_step, host, num_hosts))


def device_batches(
    sources: Sequence[Source],
    data: DataConfig,
    batch_size: int,
    seed: int,
    first_step: int,
    sharding: NamedSharding,
) -> Iterator[Batch]:
    """The same batches, each host's share put on its devices ahead of time."""

    def put(batch: Batch) -> Batch:
        return Batch(*(jax.make_array_from_process_local_data(sharding, a) for a in batch))

    share = jax.process_index(), jax.process_count()
    dataset = _dataset(sources, data, batch_size, seed, first_step, *share)
    return iter(
        grain.experimental.ThreadPrefetchIterDataset(
            dataset.map(put), prefetch_buffer_size=_ON_DEVICE
        )
    )


def _dataset(
    sources: Sequence[Source],
    data: DataConfig,
    batch_size: int,
    seed: int,
    first_step: int,
    host: int,
    num_hosts: int,
) -> grain.IterDataset:
    together = 1 if data.pair is None else 2
    share, rest = divmod(batch_size, num_hosts * together)
    if rest:
        in_pairs = "" if data.pair is None else f" with data.pair {data.pair!r}"
        raise ConfigError(
            f"config.train.batch_size is {batch_size}{in_pairs} on {num_hosts} hosts; allowed: "
            f"a multiple of {num_hosts * together}"
        )
    turns = []
    for source in sources:
        dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
        dataset = dataset.random_map(_Draw(source, data.flip))
        turns.append(dataset.batch(share)[host::num_hosts])
    weights = data.mix_weights or (1.0,) * len(turns)
    steps = turns[0] if len(turns) == 1 else grain.MapDataset.mix(turns, weights)
    steps = steps.map(_in_rows if together == 2 else lambda e: Batch(e["x"], e["label"]))
    return steps[first_step:].to_iter_dataset(_READ)


def _in_rows(example: Record) -> Batch:
    """The images of pairs [n / 2, 2, H, W, C] one after another, each with the pair's label."""
    x = example["x"]
    return Batch(x.reshape(-1, *x.shape[2:]), np.repeat(example["label"], 2))


class _Draw:
    def __init__(self, source: Source, flip: bool):
        self.source = source
        self.flip = flip

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        mirrored = self.flip and bool(rng.random() < 0.5)
        x = self.source.draw(record, mirrored, rng)
        return {"x": x, "label": np.asarray(record["label"], np.int32)}
