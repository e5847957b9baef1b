"""Images in files of their own: in a folder, nested or not, or in a zip."""

import contextlib
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from tqdm import tqdm

from dit_moe import files
from eval.image_sets import ImageSet, ImageSetError
from eval.labels import Labels, of_folders

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp")

_THREADS = 8
_MODES = ("1", "L", "P", "RGB")  # eight bits a channel, opaque


def open_folder(path: Path) -> ImageSet:
    """All images below a folder, in the order of their sorted paths, as RGB.

    Labels come from EDM's `dataset.json` where there is one, otherwise from class folders: if every
    image is in a sub-folder, the top ones are classes by name, or by number if all are numbers.

    Raises:
        ImageSetError: there is no image, the first cannot be read, or `dataset.json` is wrong.
    """
    names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]

    def content() -> str:
        digest = hashlib.sha256()
        for name in tqdm(sorted(names), desc="hashing files", unit="file", delay=2, leave=False):
            digest.update(f"{name}\0{files.sha256(path / name)}\n".encode())
        return digest.hexdigest()

    return _image_set(str(path), names, lambda name: (path / name).read_bytes(), content)


def open_zip(path: Path) -> ImageSet:
    """All images of a zip file, as `open_folder`.

    Raises:
        ImageSetError: as `open_folder`, or the zip is damaged.
    """
    try:
        archive = zipfile.ZipFile(path)  # open as long as the set is in use
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError) as error:
        raise ImageSetError(f"{path} cannot be read ({error}).") from error
    return _image_set(str(path), names, archive.read, lambda: files.sha256(path))


def _image_set(
    path: str, names: Sequence[str], read: Callable[[str], bytes], content: Callable[[], str]
) -> ImageSet:
    image_names = sorted(name for name in names if _is_image(name))
    if not image_names:
        raise ImageSetError(f"{path} holds no images; allowed: {', '.join(SUFFIXES)}.")
    shape = _decode(path, image_names[0], read).shape

    def load(name: str) -> np.ndarray:
        image_HxWx3 = _decode(path, name, read)
        if image_HxWx3.shape != shape:
            raise ImageSetError(
                f"{path}: {name} is {_size(image_HxWx3.shape)}, but {image_names[0]} is "
                f"{_size(shape)}; all images must be of one size."
            )
        return image_HxWx3

    def batches(size: int, start: int) -> Iterator[np.ndarray]:
        with ThreadPoolExecutor(_THREADS) as pool:
            for first in range(start, len(image_names), size):
                yield np.stack(list(pool.map(load, image_names[first : first + size])))

    labels = _labels(path, names, image_names, read)
    height, width, channels = shape
    return ImageSet(
        path=path,
        num=len(image_names),
        shape=(height, width, channels),
        make_batches=batches,
        make_labels=lambda: labels,
        make_sha256=content,
    )


def _is_image(name: str) -> bool:
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and name.lower().endswith(SUFFIXES)


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _decode(path: str, name: str, read: Callable[[str], bytes]) -> np.ndarray:
    """uint8 [H, W, 3]."""
    try:
        with Image.open(io.BytesIO(read(name))) as image:
            mode = image.mode
            if mode in _MODES and "transparency" not in image.info:
                return np.asarray(image.convert("RGB"))
    except Exception as error:
        # Pillow raises almost anything on damaged files: UnidentifiedImageError, SyntaxError, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageSetError(f"{path}: {name} cannot be read ({reason}).") from error
    raise ImageSetError(
        f"{path}: {name} is of mode {mode}, maybe with transparency; allowed: opaque RGB or grey "
        "with eight bits a channel."
    )


def _labels(
    path: str, names: Sequence[str], image_names: Sequence[str], read: Callable[[str], bytes]
) -> Labels | None:
    if "dataset.json" in names:
        return _edm_labels(path, image_names, read)
    tops = [PurePosixPath(name).parts[0] for name in image_names if "/" in name]
    return of_folders(tops) if len(tops) == len(image_names) else None


def _edm_labels(
    path: str, image_names: Sequence[str], read: Callable[[str], bytes]
) -> Labels | None:
    try:
        text = read("dataset.json")
    except Exception as error:  # damaged zips raise almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageSetError(f"{path}: dataset.json cannot be read ({reason}).") from error
    with contextlib.suppress(
        ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError
    ):
        labels = json.loads(text)["labels"]
        if labels is None:
            return None
        of_name = dict(labels)
        numbers = [of_name[name] for name in image_names]
        if all(type(number) is int for number in numbers):
            return Labels(np.array(numbers, np.int64))
    raise ImageSetError(
        f"{path}: dataset.json must hold {{'labels': [[file, class], ...]}} for every image, "
        "classes as numbers, or null labels."
    )
