"""Colour patches, 32x32, of the photographs that ship with scikit-image; a class is a photograph.

Train and held-out patches come from disjoint blocks of every photograph. Patches of one block may
overlap, so an epoch has more images than independent content.
"""

from typing import Literal, get_args

import numpy as np
from skimage import data

Split = Literal["train", "heldout"]

CLASSES = ("astronaut", "cat", "coffee", "galaxies", "tissue", "motorcycle", "retina", "rocket")
IMAGE_SIZE = 32
PER_CLASS = {"train": 2500, "heldout": 1250}
_BLOCK = 64
_SHORT_SIDE = 256
_HELDOUT_SHARE = 4  # one block in four


def photographs() -> list[np.ndarray]:
    """uint8 [H, W, 3], one a class, averaged down so that a patch shows more than texture."""
    originals = [
        data.astronaut(),
        data.chelsea(),
        data.coffee(),
        data.hubble_deep_field(),
        data.immunohistochemistry(),
        data.stereo_motorcycle()[0],
        data.retina(),
        data.rocket(),
    ]
    return [_reduce(np.asarray(image), min(image.shape[:2]) // _SHORT_SIDE) for image in originals]


def _reduce(image_HxWxC: np.ndarray, factor: int) -> np.ndarray:
    """Means of factor x factor boxes; what does not fill a box is cut off."""
    height, width = (side // factor for side in image_HxWxC.shape[:2])
    image = image_HxWxC[: height * factor, : width * factor]
    boxes = image.reshape(height, factor, width, factor, -1).mean(axis=(1, 3))
    return np.rint(boxes).astype(np.uint8)


def load(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """The patches and labels of one split.

    Args:
        split: "train" (2,500 patches of every photograph) or "heldout" (1,250).

    Returns:
        image_NxHxWxC: uint8 [N, 32, 32, 3].
        label_N: int32 [N], places in CLASSES.

    Raises:
        ValueError: `split` is neither of the two.
    """
    if split not in get_args(Split):
        allowed = " or ".join(repr(name) for name in get_args(Split))
        raise ValueError(f"split is {split!r}, but the patches have only {allowed}.")
    images = [
        _cut(photograph, split, np.random.RandomState(label))  # a stream that never changes
        for label, photograph in enumerate(photographs())
    ]
    label_N = np.repeat(np.arange(len(images), dtype=np.int32), PER_CLASS[split])
    return np.concatenate(images), label_N


def _cut(image_HxWxC: np.ndarray, split: Split, random: np.random.RandomState) -> np.ndarray:
    rows, columns = (side // _BLOCK for side in image_HxWxC.shape[:2])
    blocks = random.permutation(rows * columns)
    heldout = len(blocks) // _HELDOUT_SHARE
    blocks = blocks[:heldout] if split == "heldout" else blocks[heldout:]
    offsets = _BLOCK - IMAGE_SIZE + 1  # of a patch in its block, on each axis
    chosen = random.choice(len(blocks) * offsets**2, PER_CLASS[split], replace=False)
    block, offset = np.divmod(chosen, offsets**2)
    top = blocks[block] // columns * _BLOCK + offset // offsets
    left = blocks[block] % columns * _BLOCK + offset % offsets
    windows = np.lib.stride_tricks.sliding_window_view(
        image_HxWxC, (IMAGE_SIZE, IMAGE_SIZE), axis=(0, 1)
    )
    return windows[top, left].transpose(0, 2, 3, 1)
