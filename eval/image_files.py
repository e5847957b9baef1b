"""Images in files of their own: in a folder, nested or not, or in a zip."""

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from dit_moe.data import edm_labels
from dit_moe.data.picture_files import FilesError, Listing, has_picture_name, printable
from dit_moe.data.picture_folders import list_folder
from dit_moe.data.picture_zips import list_zip
from dit_moe.storage import files
from dit_moe.storage.pictures import SUFFIXES, ImageError, read_picture

from .image_set import ImageSet, ImageSetError
from .labels import Labels, of_folders
from .resize import Resize

_THREADS = 8


def open_folder(path: Path, resize: Resize | None = None) -> ImageSet:
    """All images below a folder, in the order of their sorted paths, as RGB.

    Labels come from EDM's `dataset.json` where there is one, otherwise from class folders: if every
    image is in a sub-folder, the top ones are classes by name, or by number if all are numbers. A
    class folder may be a link. Other files than pictures are left out, which is told on stderr.

    Raises:
        ImageSetError: there is no image, the first cannot be read, or `dataset.json` is wrong.
    """
    listing = _listed(path, list_folder)
    names = [name for name in listing.names if has_picture_name(name) or name == edm_labels.NAME]

    def content() -> str:
        digest = hashlib.sha256()
        for name in tqdm(names, desc="hashing files", unit="file", delay=2, leave=False):
            each = hashlib.sha256(_read(path, name, listing)).hexdigest()
            digest.update(f"{printable(name)}\0{each}\n".encode())
        return digest.hexdigest()

    return _image_set(path, listing, content, resize)


def open_zip(path: Path, resize: Resize | None = None) -> ImageSet:
    """All images of a zip file, as `open_folder`; one folder that holds all others is no class.

    Raises:
        ImageSetError: as `open_folder`, or the zip is damaged or packed in another way.
    """
    return _image_set(path, _listed(path, list_zip), lambda: files.sha256(path), resize)


def _listed(path: Path, list_files: Callable[[Path], Listing]) -> Listing:
    try:
        return list_files(path)
    except FilesError as error:
        raise ImageSetError(f"{error}.") from None


def _image_set(
    path: Path, listing: Listing, content: Callable[[], str], resize: Resize | None
) -> ImageSet:
    names = [name for name in listing.names if has_picture_name(name)]
    others = sorted({*listing.names, *listing.refused} - {*names, edm_labels.NAME})
    if not names:
        raise ImageSetError(f"{path} holds no images; allowed: {', '.join(SUFFIXES)}.")
    if others or listing.loose:
        example = f", such as {printable(others[0])}" if others else ""
        print(
            f"{path}: files left out, being no pictures by their names or beside the folder of "
            f"the others: {len(others) + listing.loose:,}{example}.",
            file=sys.stderr,
        )

    def decode(name: str) -> np.ndarray:
        image_HxWx3 = _decode(path, name, listing)
        return image_HxWx3 if resize is None else resize(image_HxWx3)

    shape = decode(names[0]).shape

    def load(name: str) -> np.ndarray:
        image_HxWx3 = decode(name)
        if image_HxWx3.shape != shape:
            raise ImageSetError(
                f"{path}: {printable(name)} is {_size(image_HxWx3.shape)}, but "
                f"{printable(names[0])} is {_size(shape)}; all images must be of one size: name a "
                "rule by --resize, or cut them by python -m dit_moe.data.prepare --autoencoder "
                "none, and give its output."
            )
        return image_HxWx3

    def batches(size: int, start: int) -> Iterator[np.ndarray]:
        with ThreadPoolExecutor(_THREADS) as pool:
            for first in range(start, len(names), size):
                yield np.stack(list(pool.map(load, names[first : first + size])))

    labels = _labels(path, listing, names)
    height, width, channels = shape
    return ImageSet(
        path=str(path),
        num=len(names),
        shape=(height, width, channels),
        make_batches=batches,
        make_labels=lambda: labels,
        make_sha256=content,
    )


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _read(path: Path, name: str, listing: Listing) -> bytes:
    try:
        return listing.files.read(name)
    except ImageError as error:
        raise ImageSetError(f"{path}: {printable(name)} cannot be read ({error}).") from None


def _decode(path: Path, name: str, listing: Listing) -> np.ndarray:
    """uint8 [H, W, 3]."""
    content = _read(path, name, listing)
    try:
        return np.asarray(read_picture(content).convert("RGB"))
    except ImageError as error:
        raise ImageSetError(f"{path}: {printable(name)} cannot be read ({error}).") from None


def _labels(path: Path, listing: Listing, names: Sequence[str]) -> Labels | None:
    if edm_labels.NAME in listing.names:
        try:
            label = edm_labels.read(listing.files, names)
        except FilesError as error:
            raise ImageSetError(f"{path}: {error}.") from None
        if label is None:
            return None
        return Labels(np.array([label[name] for name in names], np.int64))
    tops = [PurePosixPath(name).parts[0] for name in names if "/" in name]
    return of_folders(tops) if len(tops) == len(names) else None
