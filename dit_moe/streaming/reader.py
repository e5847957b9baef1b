"""Explicit reads of experts.bin into buffers of one's own: what is held is what was asked for."""

import mmap
import os
import zlib
from pathlib import Path
from types import TracebackType

import numpy as np

from dit_moe.config import ConfigError
from dit_moe.streaming.layout import Store

_PIECE = 8 * 2**20  # bytes read before they are checked, while they are in the processor's cache


class Reader:
    """Reads blocks, and checks them.

    Args:
      path: experts.bin, which stays open until `close`.
      store: what it holds.

    Raises:
      OSError: it cannot be opened.
    """

    def __init__(self, path: Path, store: Store):
        self._path, self._store = path, store
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.bytes_read = 0
        """Since it was opened."""

    def __enter__(self) -> "Reader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; once is enough."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read(self, layer: int, expert: int, into: np.ndarray) -> None:
        """Reads an expert's block.

        Args:
          layer: its number in the store.
          expert: in its layer.
          into: uint8 [at least the block's bytes], contiguous.

        Raises:
          ConfigError: the file is cut or changed.
          OSError: it cannot be read.
        """
        told = self._store.layers[layer]
        start = self._store.starts[layer] + expert * told.block
        view, done, crc = into[: told.block].data, 0, 0
        while done < told.block:
            piece = view[done : done + _PIECE]
            try:
                count = os.preadv(self._descriptor, [piece], start + done)
            except OSError as error:
                reason = f"cannot be read: {error.strerror}"
                raise OSError(error.errno, reason, str(self._path)) from error
            if not count:
                raise ConfigError(
                    f"{self._path} was cut while it is drawn from: make or copy the store again"
                )
            crc = zlib.crc32(piece[:count], crc)
            done += count
            self.bytes_read += count
        if crc != told.crc32[expert]:
            raise ConfigError(
                f"{self._path} is damaged: expert {expert} of {told.path} in unit {told.unit} is "
                "not what was written; make or copy the store again"
            )

    def forget(self) -> None:
        """Asks the system to drop what it keeps of the file, so that the next reads are the disk's;
        a measurement's, since pages in use and some file systems ignore it."""
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def buffer(size: int) -> np.ndarray:
    """uint8 [size], of the system and not of the process's heap: what is freed is free."""
    return np.frombuffer(mmap.mmap(-1, max(size, 1)), np.uint8)
