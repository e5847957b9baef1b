"""Reads sets of labelled images in the `.npz` format of ADM (Dhariwal and Nichol, 2021).

`arr_0` holds the images and `arr_1` their labels:
https://github.com/openai/guided-diffusion/tree/main/evaluations
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np


class ImageSetError(ValueError):
    """A set of images cannot be used; the message is one sentence for its user."""


@dataclass(frozen=True)
class ImageSet:
    """Images with the class that each was asked to show."""

    image: np.ndarray
    """uint8 [N, H, W, C], N >= 1, C 1 or 3."""
    label: np.ndarray
    """int64 [N]."""


def read(path: str | Path) -> ImageSet:
    """Reads images and labels from an `.npz` file. Pickled content is refused, never executed.

    Raises:
        ImageSetError: the file is missing, not an `.npz`, damaged or pickled; `arr_0` is not uint8
            [N, H, W, C] with N >= 1 and C of 1 or 3; or `arr_1` is missing, not integers or of
            another length.
    """
    path = Path(path)
    if not path.exists():
        raise ImageSetError(f"{path} does not exist.")
    if not path.is_file():
        raise ImageSetError(f"{path} is not a file.")
    try:
        if not zipfile.is_zipfile(path):
            raise ImageSetError(f"{path} is not an .npz file, or it was cut short.")
        with np.load(path, allow_pickle=False) as archive:
            image_NxHxWxC = _member(path, archive, "arr_0", "images")
            label_N = _member(path, archive, "arr_1", "labels")
    except ImageSetError:
        raise
    except Exception as error:
        # Damaged archives and headers raise almost anything: BadZipFile, zlib.error, TokenError,
        # OverflowError, TypeError, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageSetError(f"{path} cannot be read ({reason}).") from error

    if image_NxHxWxC.dtype != np.uint8:
        raise ImageSetError(
            f"{path}: the images (arr_0) are {image_NxHxWxC.dtype}, but must be uint8, 0 to 255."
        )
    shape = image_NxHxWxC.shape
    if len(shape) != 4 or shape[3] not in (1, 3):
        raise ImageSetError(
            f"{path}: the images (arr_0) have shape {shape}, but must be [N, H, W, C] "
            "with C of 1 or 3."
        )
    if image_NxHxWxC.size == 0:
        raise ImageSetError(f"{path} holds no images (arr_0 has shape {shape}).")
    if not np.issubdtype(label_N.dtype, np.integer):
        raise ImageSetError(
            f"{path}: the labels (arr_1) are {label_N.dtype}, but must be integers."
        )
    if label_N.shape != shape[:1]:
        raise ImageSetError(
            f"{path}: the labels (arr_1) have shape {label_N.shape}, but {shape[0]} images "
            f"need ({shape[0]},)."
        )
    return ImageSet(image_NxHxWxC, label_N.astype(np.int64))


def _member(path: Path, archive: np.lib.npyio.NpzFile, name: str, content: str) -> np.ndarray:
    if name not in archive.files:
        raise ImageSetError(f"{path} has no {content} ({name}).")
    try:
        array = archive[name]
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise ImageSetError(
                f"{path}: {name} holds pickled Python objects, which are refused because "
                "reading them can execute code."
            ) from error
        raise
    # NumPy hands over the bytes of a member that is not in its own format.
    if not isinstance(array, np.ndarray):
        raise ImageSetError(f"{path}: {name} is not a NumPy array.")
    return array
