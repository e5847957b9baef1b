"""Images in the `.npz` format of ADM (Dhariwal and Nichol, 2021), streamed from the file.

`arr_0` holds the images, uint8 [N, H, W, C], and `arr_1`, which may be absent, their labels:
https://github.com/openai/guided-diffusion/tree/main/evaluations
Beside them, sample.py writes which classes of the data the labels 0, 1, ... are, where those have
other numbers or names (`dit_moe.data.npz_classes`).
"""

import contextlib
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from dit_moe.config import ConfigError
from dit_moe.data.npz_classes import MEMBERS, check_integers, stored_classes
from dit_moe.storage import files
from dit_moe.storage.npz import NpzError, open_archive, open_member, read_member

from .image_set import ImageSet, ImageSetError, check_shape
from .labels import Labels, of_places

_CHUNK = 2**24  # bytes that are skipped at once
_LABELS = ("arr_1", *MEMBERS)


def is_npz(path: Path) -> bool:
    """Whether a zip file holds NumPy arrays."""
    with _opened(path) as archive:
        return any(name.endswith(".npy") for name in archive.namelist())


def has_images(path: Path) -> bool:
    """Whether an `.npz` file has a member `arr_0`."""
    with _opened(path) as archive:
        return "arr_0.npy" in archive.namelist()


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Those of the named members that an `.npz` file has; raises ImageSetError as `open_npz`."""
    with _opened(path) as archive:
        present = set(archive.namelist())
        return {n: read_member(path, archive, n) for n in names if f"{n}.npy" in present}


def open_npz(path: Path) -> ImageSet:
    """The images of `arr_0` with the labels of `arr_1`. Pickled content is refused, never executed.

    Raises:
        ImageSetError: the file is missing, not an `.npz`, damaged or pickled; `arr_0` is not uint8
            [N, H, W, C] with N >= 1 and C of 1 to 4; or `arr_1` is not integers [N].
    """
    if not path.exists():
        raise ImageSetError(f"{path} does not exist.")
    if not path.is_file():
        raise ImageSetError(f"{path} is not a file.")
    if not zipfile.is_zipfile(path):
        raise ImageSetError(f"{path} is not an .npz file, or it was cut short.")

    with _opened(path) as archive:
        names = archive.namelist()
        if "arr_0.npy" not in names:
            raise ImageSetError(f"{path} has no images (arr_0).")
        with open_member(path, archive, "arr_0") as (file, shape, dtype):
            if dtype != np.uint8:
                raise ImageSetError(_wrong_dtype(path, file, shape, dtype))
            shown = check_shape(f"{path} (arr_0)", shape)
        beside = {n: read_member(path, archive, n) for n in _LABELS if f"{n}.npy" in names}

    labels = _labels(path, shape[0], **beside)
    return ImageSet(
        path=str(path),
        num=shape[0],
        shape=shown,
        make_batches=lambda size, start: _batches(path, size, start),
        make_labels=lambda: labels,
        make_sha256=lambda: files.sha256(path),
    )


def _labels(
    path: Path,
    num: int,
    arr_1: np.ndarray | None = None,
    class_numbers: np.ndarray | None = None,
    class_names: np.ndarray | None = None,
) -> Labels | None:
    """The labels of `num` images; raises ImageSetError."""
    if arr_1 is None:
        return None
    try:
        check_integers("the labels (arr_1)", arr_1)
        if arr_1.shape != (num,):
            raise ConfigError(
                f"the labels (arr_1) have shape {arr_1.shape}, but {num} images need ({num},)"
            )
        numbers, names = stored_classes(arr_1, class_numbers, class_names)
    except ConfigError as error:
        raise ImageSetError(f"{path}: {error}.") from None
    return of_places(arr_1, names, numbers)


def _batches(path: Path, size: int, start: int) -> Iterator[np.ndarray]:
    with (
        _opened(path) as archive,
        open_member(path, archive, "arr_0") as (file, shape, _),
    ):
        image_bytes = int(np.prod(shape[1:]))
        to_skip = start * image_bytes
        while to_skip:
            to_skip -= len(_exactly(path, file, min(to_skip, _CHUNK)))
        for first in range(start, shape[0], size):
            num = min(size, shape[0] - first)
            content = _exactly(path, file, num * image_bytes)
            yield np.frombuffer(content, np.uint8).reshape(num, *shape[1:])
        file.read()  # the checksum is compared at the end of the member


def _exactly(path: Path, file: IO[bytes], num: int) -> bytes:
    content = file.read(num)
    if len(content) != num:
        raise ImageSetError(f"{path}: arr_0 was cut short.")
    return content


def _wrong_dtype(path: Path, file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> str:
    message = f"{path}: the images (arr_0) are {dtype}, but must be uint8, 0 to 255"
    if not np.issubdtype(dtype, np.floating) or not shape:
        return f"{message}."
    num = int(np.prod(shape[1:])) * min(shape[0], 64)
    x = np.frombuffer(file.read(num * dtype.itemsize), dtype)
    if not x.size or not np.isfinite(x).all() or np.abs(x).max() > 255:
        return f"{message}."
    low, high = float(x.min()), float(x.max())
    if high > 1.5:
        return f"{message}; they span {low:g} to {high:g}: round them."
    mend = "(x + 1) * 127.5" if low < -0.01 else "x * 255"
    return f"{message}; they span {low:.2g} to {high:.2g}: clip and round {mend}."


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with open_archive(path, ImageSetError) as archive:
            yield archive
    except NpzError as error:
        raise ImageSetError(str(error)) from error
