"""Batches for training: shuffled, endless, a function of (seed, step)."""

from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np

from dit_moe.config import Config
from dit_moe.data.sources import Source


class Batch(NamedTuple):
    """Examples on the host."""

    x: np.ndarray
    """[N, H, W, C] float32."""
    label: np.ndarray
    """[N] int32."""


def batches(config: Config, source: Source, first_step: int = 0) -> Iterator[Batch]:
    """Yields the batch of `first_step`, then of the next, without end.

    Every epoch is shuffled anew; a batch may span two epochs, so that no example is left out.
    """
    dataset = grain.MapDataset.source(source).seed(config.seed).shuffle().repeat()
    if config.data.flip:
        dataset = dataset.random_map(_flip)
    dataset = dataset.batch(config.train.batch_size)[first_step:]
    for example in dataset.to_iter_dataset():
        yield Batch(example["x"], example["label"])


def _flip(example: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    if rng.random() < 0.5:
        example["x"] = example["x"][:, ::-1]
    return example
