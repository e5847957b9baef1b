"""What is to be prepared: a listing, fixed before the work, and how its pictures are read."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np

UNCONDITIONAL = ("all",)
"""The one class of pictures without classes."""
Kind = Literal["image_folder", "zip", "tfds", "idx", "webdataset", "parquet", "fast_dit", "edm2"]


class Entry(NamedTuple):
    """One picture of the listing."""

    key: str
    """Names it in its source: a path with slashes, or the number of a record."""
    label: int | None
    """None: its record holds it."""
    place: tuple[int, int] | None = None
    """Where it lies in its shard, for readers that need to be told."""


class Posterior(NamedTuple):
    """A latent that is there already: what a picture was encoded to."""

    mean: np.ndarray
    """float32 [h, w, c]."""
    log_variance: np.ndarray
    """float32 [h, w, c]."""


@dataclass(frozen=True)
class Latents:
    """What all latents of an input have in common."""

    shape: tuple[int, int, int]
    """(h, w, c)."""
    scaled: bool
    """Whether they were multiplied by the autoencoder's scaling factor, or by another one."""
    pixel_range: tuple[float, float] = (-1.0, 1.0)
    """Black and white of the pictures that were encoded."""


class Reader(Protocol):
    """Reads pictures by entry. Small, because it is sent to every worker process."""

    def read(self, entry: Entry) -> tuple[bytes | np.ndarray | Posterior, int]:
        """What `decode` takes, or a latent, and the label.

        Raises:
          ImageError: it cannot be read.
        """
        ...


@dataclass(frozen=True)
class Input:
    """All pictures in a fixed order, with their classes."""

    kind: Kind
    entries: Sequence[Entry]
    classes: tuple[str, ...]
    digest: str
    """SHA-256 of the listing."""
    reader: Reader
    ignored: int = 0
    """Files outside of class folders, or that are no pictures beside a `dataset.json`."""
    channels: int = 3
    """Of the prepared pictures, if nothing else is asked for."""
    latents: Latents | None = None
    """None: it holds pictures."""


def listing_digest(lines: Iterable[object]) -> str:
    """SHA-256 of all that the order and the labels of a listing depend on."""
    digest = hashlib.sha256()
    for line in lines:
        if isinstance(line, Entry) and line.place is None:
            line = line[:2]  # as before there were places: sets that were begun go on
        digest.update(json.dumps(line).encode() + b"\n")
    return digest.hexdigest()
