"""Files that are either whole or absent."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path` that becomes `path` when the block succeeds.

    Raises:
      OSError: the folder or file cannot be written; a file that was there stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays: NumPy and Pillow choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
