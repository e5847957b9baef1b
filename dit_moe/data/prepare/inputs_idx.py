"""Pictures in files of the format of MNIST as an input."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dit_moe.config import ConfigError
from dit_moe.data.idx_files import IdxError, find_pair, read_idx
from dit_moe.data.prepare.input import Entry, Input, listing_digest
from dit_moe.storage.files import sha256
from dit_moe.storage.pictures import ImageError


@dataclass(frozen=True)
class _IdxReader:
    images: Path
    """Resolved."""

    def read(self, entry: Entry) -> tuple[np.ndarray, int]:
        assert entry.label is not None
        try:
            return _images(self.images)[int(entry.key)], entry.label
        except (IdxError, IndexError):
            raise ImageError("unreadable") from None


@functools.lru_cache(maxsize=1)
def _images(path: Path) -> np.ndarray:
    return read_idx(path, 3)


def open_idx(path: Path, split: str) -> Input:
    """Lists one pair of files; see `inputs.open_input`. The pictures are grey."""
    if not path.exists():
        raise ConfigError(f"input {str(path)!r} does not exist; allowed: a folder of idx files")
    try:
        pair = find_pair(path, split)
        number = len(read_idx(pair.images, 3))
        label_N = read_idx(pair.labels, 1)
    except IdxError as error:
        raise ConfigError(f"input {error}") from None
    if len(label_N) != number:
        raise ConfigError(
            f"input {str(pair.images)!r} holds {number:,} pictures, but {pair.labels.name} "
            f"{len(label_N):,} labels; allowed: one for each"
        )
    # A picture has no name of its own.
    entries = [Entry(f"{index:08d}", label) for index, label in enumerate(label_N.tolist())]
    classes = tuple(str(number) for number in range(int(label_N.max()) + 1))
    digest = listing_digest([sha256(pair.images), sha256(pair.labels)])
    return Input("idx", entries, classes, digest, _IdxReader(pair.images.resolve()), channels=1)
