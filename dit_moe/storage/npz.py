"""Arrays from `.npz` files of anybody: nothing is executed, and damage is told in a sentence."""

import contextlib
import io
import math
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from dit_moe.storage.errors import ConfigError

MAX_BYTES = 2**31
"""The most that an array may have to be read at once."""


class NpzError(ConfigError):
    """A file cannot be read; the message is one sentence that names it."""


@contextlib.contextmanager
def open_archive(path: Path, *own: type[Exception]) -> Iterator[zipfile.ZipFile]:
    """The file for reading.

    Raises:
      NpzError: opening it, or what the block reads, fails in any way but with one of the errors
        `own`, which the block raises itself.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (NpzError, GeneratorExit, *own):
        raise
    except Exception as error:
        # Damaged archives and headers raise almost anything: BadZipFile, zlib.error, TokenError,
        # OverflowError, TypeError, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise NpzError(f"{path} cannot be read ({reason}).") from error


@contextlib.contextmanager
def open_member(
    path: Path, archive: zipfile.ZipFile, name: str
) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype]]:
    """An array's bytes past its header, its shape and its type: no objects, always in C order.

    Raises:
      NpzError: it is something else.
    """
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as file:
        try:
            shape, dtype = _read_header(file)
        except _HeaderError as error:
            raise NpzError(f"{path}: {name} {error}.") from None
        if not _fits(shape, dtype, info.file_size - file.tell()):
            raise NpzError(
                f"{path} cannot be read ({name} says it has shape {shape}, but holds "
                f"{info.file_size - file.tell()} bytes)."
            )
        yield file, shape, dtype


class _HeaderError(ValueError):
    """What an array is that is not read; the message begins with a verb."""


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = npy.read_magic(file)
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in read_header:
        raise _HeaderError(f"has the unknown .npy version {version}")
    shape, fortran_order, dtype = read_header[version](file)
    if dtype.hasobject:
        raise _HeaderError(
            "holds pickled Python objects, which are refused because reading them can execute code"
        )
    if fortran_order and len(shape) > 1:
        raise _HeaderError("is in Fortran order; save numpy.ascontiguousarray of it")
    return shape, dtype


def _fits(shape: tuple[int, ...], dtype: np.dtype, num_bytes: int) -> bool:
    # Python's whole numbers do not overflow.
    return min(shape, default=0) >= 0 and math.prod(map(int, shape)) * dtype.itemsize == num_bytes


def parse_npy(content: bytes) -> np.ndarray:
    """The array of a `.npy` file's bytes, without a copy.

    Raises:
      ValueError: it is damaged, or none that is read without executing code; a short reason.
    """
    file = io.BytesIO(content)
    try:
        shape, dtype = _read_header(file)
    except _HeaderError:
        raise
    except Exception:  # damaged headers raise almost anything
        raise ValueError("a damaged header") from None
    if not _fits(shape, dtype, len(content) - file.tell()):
        raise ValueError("cut short")
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape)


def read_member(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of at most `MAX_BYTES`; raises as `open_member`."""
    with open_member(path, archive, name) as (file, shape, dtype):
        num_bytes = math.prod(map(int, shape)) * dtype.itemsize
        if num_bytes > MAX_BYTES:
            raise NpzError(f"{path}: {name} has {num_bytes:,} bytes; allowed: {MAX_BYTES:,}.")
        content = file.read(num_bytes)  # no more, whatever the member inflates to
        if len(content) != num_bytes:
            raise NpzError(f"{path}: {name} was cut short.")
        return np.frombuffer(content, dtype).reshape(shape)


def read_npz(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Those of the named arrays that a file has.

    Raises:
      NpzError: it cannot be read, or holds something else under such a name.
    """
    with open_archive(path) as archive:
        present = set(archive.namelist())
        return {n: read_member(path, archive, n) for n in names if f"{n}.npy" in present}
