"""Files of the format of MNIST: idx, plain or packed by gzip.

Four bytes tell the type and the number of dimensions, four more the size of each, high bytes first.
Source: LeCun, Cortes and Burges 1998, The MNIST database of handwritten digits.
"""

import gzip
import math
import re
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dit_moe.config import ConfigError

MAX_BYTES = 2**33
"""The most that a file may hold, unpacked: it is read whole."""
_BYTES = 0x08  # the type
_MOST_PACKED = 1032  # times, by Deflate
_IMAGES = re.compile(r"(?P<head>.*)images(?P<dot>[-.])idx3-ubyte(?P<gz>\.gz)?")
_SPLITS = {"train": ("train",), "test": ("t10k", "test")}


class IdxError(ConfigError):
    """A file cannot be used; the message begins with its path."""


class Pair(NamedTuple):
    """Pictures and their labels."""

    images: Path
    labels: Path


def is_images(path: Path) -> bool:
    """Whether a file is named as pictures are, such as `train-images-idx3-ubyte.gz`."""
    return _IMAGES.fullmatch(path.name) is not None


def find_pair(path: Path, split: str) -> Pair:
    """The two files of a set.

    Args:
      path: of the pictures, or the folder in which they lie.
      split: "train" or "test" (`t10k`), for a folder.

    Raises:
      IdxError: they are not there, or there are several.
    """
    images = _images_of(path, split) if path.is_dir() else path
    found = _IMAGES.fullmatch(images.name)
    if found is None:
        raise IdxError(
            f"{str(images)!r} is not named as pictures are; allowed: a name as "
            "train-images-idx3-ubyte, perhaps with .gz, beside train-labels-idx1-ubyte"
        )
    name = f"{found['head']}labels{found['dot']}idx1-ubyte"
    for labels in (images.with_name(name), images.with_name(f"{name}.gz")):
        if labels.is_file():
            return Pair(images, labels)
    raise IdxError(f"{str(images)!r} has no labels beside it; allowed: with {name} or {name}.gz")


def _images_of(folder: Path, split: str) -> Path:
    if split not in _SPLITS:
        raise IdxError(f"{str(folder)!r} has no split {split!r}; allowed: {', '.join(_SPLITS)}")
    files = sorted(item for item in folder.iterdir() if item.is_file() and is_images(item))
    # Unpacked files may lie beside the packed ones, and come first.
    own = {
        file.name.removesuffix(".gz"): file
        for file in reversed(files)
        if any(word in file.name.partition("images")[0] for word in _SPLITS[split])
    }
    if len(own) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise IdxError(
            f"{str(folder)!r} has {len(own)} files of pictures of the split {split!r} (it has "
            f"{names}); allowed: one, such as {split}-images-idx3-ubyte.gz, or give the file itself"
        )
    (file,) = own.values()
    return file


def read_idx(path: Path, rank: int) -> np.ndarray:
    """The bytes of a file, uint8 with so many dimensions.

    Memory is taken for what the file may hold, whatever it says.

    Raises:
      IdxError: it is no idx file of that kind, is damaged, or is larger than `MAX_BYTES`.
    """
    packed = path.suffix == ".gz"
    try:
        most = path.stat().st_size * (_MOST_PACKED if packed else 1)
        with gzip.open(path) if packed else path.open("rb") as file:
            shape = _shape(path, file.read(4 + 4 * rank), rank)
            size = math.prod(shape)
            if size > MAX_BYTES:
                raise IdxError(f"{str(path)!r} holds {size:,} bytes; allowed: {MAX_BYTES:,}")
            content = file.read(size + 1) if size <= most else b""
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise IdxError(f"{str(path)!r} is damaged, or cut short; allowed: a whole file") from None
    except OSError as error:
        raise IdxError(f"{str(path)!r} cannot be read ({error.strerror})") from None
    if len(content) != size:
        raise IdxError(
            f"{str(path)!r} holds {'more' if len(content) > size else 'less'} than the "
            f"{' x '.join(map(str, shape))} that it says; allowed: a whole file"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _shape(path: Path, header: bytes, rank: int) -> tuple[int, ...]:
    wanted = struct.pack(">HBB", 0, _BYTES, rank)
    if header[:4] != wanted:
        raise IdxError(
            f"{str(path)!r} begins with {header[:4].hex() or 'nothing'}; allowed: {wanted.hex()}, "
            f"an idx file of bytes in {rank} dimension{'s' * (rank > 1)}"
        )
    if len(header) < 4 + 4 * rank:
        raise IdxError(f"{str(path)!r} is cut short; allowed: a whole file")
    shape = struct.unpack(f">{rank}I", header[4:])
    if 0 in shape:
        raise IdxError(f"{str(path)!r} is empty ({' x '.join(map(str, shape))})")
    return shape
