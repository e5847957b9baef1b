"""What a set of images to be judged is, whatever it is stored in."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from dit_moe.config import ConfigError
from dit_moe.storage.colours import MODES, on_white

from .labels import Labels


class ImageSetError(ConfigError):
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
    """(batch size, first image) -> uint8 [n, H, W, C], or with alpha; raises ImageSetError."""
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
        return map(on_white, self.make_batches(size, start))

    def read(self) -> np.ndarray:
        """All images at once, uint8 [N, H, W, C]; raises as `batches`."""
        return np.concatenate(list(self.batches(1024)))


def check_shape(path: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(H, W, C) of stored images as they are judged: on white, without alpha (C of 2 or 4).

    Raises:
        ImageSetError: `shape` is not [N, H, W, C] with N >= 1 and C of 1 to 4.
    """
    if len(shape) == 4 and shape[3] not in MODES and shape[1] in MODES:
        raise ImageSetError(
            f"{path}: the images have shape {shape}, which looks like [N, C, H, W], but must be "
            "[N, H, W, C]; transpose them by (0, 2, 3, 1)."
        )
    if len(shape) != 4 or shape[3] not in MODES:
        raise ImageSetError(
            f"{path}: the images have shape {shape}, but must be [N, H, W, C] with C of 1 to 4."
        )
    if 0 in shape:
        raise ImageSetError(f"{path} holds no images (their shape is {shape}).")
    _, height, width, channels = shape
    return height, width, channels - (channels % 2 == 0)
