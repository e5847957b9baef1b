"""Sets of images to be judged, read a batch at a time from whatever they are stored in.

`open_set` knows four forms by what the path holds: an `.npz` file (`npz_images`), a folder or a zip
of image files (`image_files`), and a TFDS data set (`tfds_images`).
"""

import functools
import hashlib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .labels import Labels, of_places


class ImageSetError(ValueError):
    """A set of images cannot be used; the message is one sentence for its user."""


@dataclass(frozen=True)
class ImageSet:
    """Images of one size, in a fixed order."""

    path: str
    """Where they come from, for messages and records."""
    num: int
    """N >= 1."""
    shape: tuple[int, int, int]
    """(H, W, C), C of 1 or 3."""
    make_batches: Callable[[int, int], Iterator[np.ndarray]]
    """(batch size, first image) -> uint8 [n, H, W, C]; raises ImageSetError."""
    make_labels: Callable[[], Labels | None]
    """-> the classes of all images, or None where they are unknown; raises ImageSetError."""
    make_sha256: Callable[[], str]
    """-> the hexadecimal SHA-256 of all that the images depend on."""

    @functools.cached_property
    def labels(self) -> Labels | None:
        """The classes of all images, or None where unknown; read once, when first asked for."""
        return self.make_labels()

    @property
    def label(self) -> np.ndarray | None:
        """int64 [N], the numbers of `labels`, or None where classes are unknown."""
        return None if self.labels is None else self.labels.number

    @functools.cached_property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of all that the images depend on; made once, when asked for."""
        return self.make_sha256()

    def batches(self, size: int, start: int = 0) -> Iterator[np.ndarray]:
        """The images from number `start`, uint8 [n, H, W, C] with n = `size` but for the last.

        Raises:
            ImageSetError: a file is damaged or of another size; the message names it.
        """
        return self.make_batches(size, start)

    def read(self) -> np.ndarray:
        """All images at once, uint8 [N, H, W, C]; raises as `batches`."""
        return np.concatenate(list(self.batches(1024)))


def open_set(path: str | Path, split: str = "train") -> ImageSet:
    """Opens a set of images without reading the pixels.

    Args:
        path: an `.npz` file, a folder or a zip of images, or a folder of a TFDS data set; "digits"
            or "patches", where no file is called so, for the held-out split of that embedded set.
        split: of a TFDS data set; the others have none.

    Raises:
        ImageSetError: missing, of no known form, empty, or of a wrong type.
    """
    # Each form imports what it reads, and this module.
    from . import image_files, npz_images, tfds_images
    from .features.embedded import EMBEDDED

    if str(path) in EMBEDDED and not Path(path).exists():
        return _embedded(str(path))
    path = Path(path)
    if not path.exists():
        raise ImageSetError(f"{path} does not exist.")
    if path.is_dir():
        if tfds_images.is_data_set(path):
            return tfds_images.open_tfds(path, split)
        return image_files.open_folder(path)
    if not path.is_file():  # opening a pipe might never end
        raise ImageSetError(f"{path} is neither a file nor a folder.")
    if not zipfile.is_zipfile(path):
        raise ImageSetError(
            f"{path} is no set of images, or it was cut short; allowed: an .npz file, a folder or "
            "a zip of images, a folder of a TFDS data set."
        )
    if npz_images.is_npz(path):
        return npz_images.open_npz(path)
    return image_files.open_zip(path)


def _embedded(name: str) -> ImageSet:
    from .features.embedded import EMBEDDED

    embedded = EMBEDDED[name]
    image_NxHxWxC, label_N = embedded.load("heldout")
    num, height, width, channels = image_NxHxWxC.shape
    return ImageSet(
        path=f"{name} (held-out)",
        num=num,
        shape=(height, width, channels),
        make_batches=lambda size, start: (
            image_NxHxWxC[first : first + size] for first in range(start, num, size)
        ),
        make_labels=lambda: of_places(label_N, embedded.classes),
        make_sha256=lambda: hashlib.sha256(image_NxHxWxC.tobytes()).hexdigest(),
    )


def check_shape(path: str, shape: tuple[int, ...]) -> None:
    """Raises ImageSetError unless `shape` is [N, H, W, C] with N >= 1 and C of 1 or 3."""
    if len(shape) == 4 and shape[3] not in (1, 3) and shape[1] in (1, 3):
        raise ImageSetError(
            f"{path}: the images have shape {shape}, which looks like [N, C, H, W], but must be "
            "[N, H, W, C]; transpose them by (0, 2, 3, 1)."
        )
    if len(shape) != 4 or shape[3] not in (1, 3):
        raise ImageSetError(
            f"{path}: the images have shape {shape}, but must be [N, H, W, C] with C of 1 or 3."
        )
    if 0 in shape:
        raise ImageSetError(f"{path} holds no images (their shape is {shape}).")
