"""Pictures and masks from the files of a user, as samples are held to them or made of them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dit_moe.config import ConfigError, ModelConfig
from dit_moe.data.classes import ModelClasses
from dit_moe.data.npz_classes import MEMBERS, stored_classes
from dit_moe.data.picture_files import has_picture_name
from dit_moe.storage.colours import MODES, as_mode
from dit_moe.storage.npz import NpzError, read_npz
from dit_moe.storage.pictures import ImageError, read_picture


class KnownPictures(NamedTuple):
    """What a file or folder holds."""

    pictures: np.ndarray
    """uint8 [M, H, W, C]."""
    labels: np.ndarray | None
    """[M], where there are any."""
    classes: ModelClasses | None
    """What the labels stand for, where the file tells it."""


def read_mask(path: Path, height: int, width: int) -> np.ndarray:
    """[H, W, 1] bool: where an image is known, as a picture tells whose white is painted anew.

    Raises:
      ConfigError: it cannot be read, or is of another size.
    """
    mask = _open(path, "mask").convert("L")
    if (mask.height, mask.width) != (height, width):
        raise ConfigError(
            f"mask is {str(path)!r} of {mask.height}x{mask.width}; allowed: {height}x{width}"
        )
    return np.asarray(mask)[..., None] < 128


def read_pictures(path: Path, field: str, model: ModelConfig) -> KnownPictures:
    """Reads an .npz, or a folder of pictures.

    Args:
      path: of it.
      field: what messages call it.
      model: for which they are. Files become grey, or get alpha, as it draws; a model of RGB takes
        grey ones as they are.

    Raises:
      ConfigError: it cannot be read, or holds something else.
    """
    channels = model.channels
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if has_picture_name(p.name) and p.is_file())
        pictures = [_open(file, field, alpha=channels in (2, 4)) for file in files]
        if channels != 3:
            pictures = [as_mode(picture, MODES[channels]) for picture in pictures]
        arrays = [np.asarray(picture) for picture in pictures]
        if len({array.shape for array in arrays}) != 1:
            raise ConfigError(
                f"{field} is {str(path)!r} with {len(files)} images of "
                f"{len({array.shape for array in arrays})} sizes or kinds; allowed: images of one "
                "size, all grey or all in colour"
            )
        x, label_M, classes = np.stack(arrays), None, None
    else:
        x, label_M, classes = _read_npz(path, field)
    x = x[..., None] if x.ndim == 3 else x
    if x.dtype != np.uint8 or x.ndim != 4 or not len(x):
        raise ConfigError(
            f"{field} is {str(path)!r} with {x.dtype} {list(x.shape)}; allowed: uint8 "
            "[M, H, W] or [M, H, W, C]"
        )
    return KnownPictures(x, label_M, classes)


def check_labels(found: KnownPictures, field: str, model: ModelConfig) -> None:
    """Checks that labels are of classes that there are.

    Raises:
      ConfigError: they are not.
    """
    label_M, classes = found.labels, found.classes
    most = model.num_classes if classes is None else len(classes.numbers)
    if label_M is not None and not np.all((label_M >= 0) & (label_M < most)):
        raise ConfigError(
            f"{field} has labels from {label_M.min()} to {label_M.max()}; allowed: 0 to {most - 1}"
        )


def _read_npz(path: Path, field: str) -> tuple[np.ndarray, np.ndarray | None, ModelClasses | None]:
    try:
        arrays = read_npz(path, ("arr_0", "arr_1", *MEMBERS))
    except NpzError as error:
        raise _unreadable(path, field, f" ({error})") from error
    if "arr_0" not in arrays:
        raise _unreadable(path, field)
    x, label_M = arrays["arr_0"], arrays.get("arr_1")
    if label_M is not None and not np.issubdtype(label_M.dtype, np.integer):
        raise ConfigError(
            f"{field} is {str(path)!r} with {label_M.dtype} labels; allowed: whole numbers"
        )
    if label_M is not None and label_M.shape != x.shape[:1]:
        raise ConfigError(
            f"{field} is {str(path)!r} with {list(label_M.shape)} labels for images "
            f"{list(x.shape)}; allowed: one for each"
        )
    return x, label_M, _classes(path, field, label_M, arrays)


def _classes(
    path: Path, field: str, label_M: np.ndarray | None, arrays: Mapping[str, np.ndarray]
) -> ModelClasses | None:
    beside = {name: arrays[name] for name in MEMBERS if name in arrays}
    if label_M is None or not label_M.size or not beside:
        return None
    try:
        numbers, names = stored_classes(label_M, **beside)
    except ConfigError as error:
        raise ConfigError(f"{field} is {str(path)!r}: {error}") from None
    return ModelClasses(numbers or tuple(range(len(names))), names)


def _unreadable(path: Path, field: str, reason: str = "") -> ConfigError:
    return ConfigError(
        f"{field} is {str(path)!r}, which cannot be read; allowed: an .npz with arr_0, or a "
        f"folder of images{reason}"
    )


def _open(path: Path, name: str, *, alpha: bool = False) -> Image.Image:
    try:
        return read_picture(path.read_bytes(), alpha=alpha)
    except (OSError, ImageError) as error:
        raise ConfigError(
            f"{name} is {str(path)!r}, which is no picture; allowed: a PNG ({error})"
        ) from None


def digest(array: np.ndarray) -> str:
    """SHA-256 of an array and its shape."""
    return hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()
