"""What the processes that decode do. Their start is quick: nothing heavy is imported."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dit_moe.data.picture_files import printable
from dit_moe.data.prepare.decode import decode
from dit_moe.data.prepare.input import Entry, Posterior, Reader
from dit_moe.storage.pictures import ImageError


class Decoded(NamedTuple):
    """One entry after decoding."""

    key: str
    label: int
    image: np.ndarray | Posterior | None
    """uint8 [H, W, C], or a latent as it was; None if it was rejected."""
    reason: str
    """Why it was rejected."""


def decode_entries(
    reader: Reader,
    entries: Sequence[Entry],
    image_size: int | tuple[int, int],
    channels: int,
) -> list[Decoded]:
    """Reads and decodes entries, in their order."""
    return [_decode_entry(reader, entry, image_size, channels) for entry in entries]


def _decode_entry(
    reader: Reader, entry: Entry, image_size: int | tuple[int, int], channels: int
) -> Decoded:
    key = printable(entry.key)
    try:
        data, label = reader.read(entry)
        image = data if isinstance(data, Posterior) else decode(data, image_size, channels)
        return Decoded(key, label, image, "")
    except ImageError as error:
        return Decoded(key, -1, None, str(error))


def start() -> None:
    """Prepares a worker process for its tasks."""
    # Ctrl-C reaches all processes of a terminal; the main one decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Workers would wait for ever for tasks of a parent that was killed.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
