"""Handwritten digits that ship with scikit-learn, with a held-out split that never changes.

1,797 images of 8x8 pixels and 17 grey levels in 10 classes: the test set of "Optical Recognition
of Handwritten Digits" (Alpaydin and Kaynak, 1998; UCI, https://doi.org/10.24432/C50P49).
"""

from typing import Literal, get_args

import numpy as np
from sklearn.datasets import load_digits

Split = Literal["train", "heldout"]

IMAGE_SIZE = 8
NUM_CLASSES = 10
HELDOUT_PER_CLASS = 40
_SPLIT_SEED = 0
_MAX_LEVEL = 16  # of the published images


def _heldout_rows(label_N: np.ndarray) -> np.ndarray:
    """Rows [400] of the held-out images, ascending: 40 of every class, drawn at random."""
    # RandomState and not default_rng: NumPy promises never to change its stream (NEP 19).
    shuffled_N = np.random.RandomState(_SPLIT_SEED).permutation(len(label_N))
    per_class = [
        shuffled_N[label_N[shuffled_N] == label][:HELDOUT_PER_CLASS] for label in range(NUM_CLASSES)
    ]
    return np.sort(np.concatenate(per_class))


def load(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of one split, in the data set's own order.

    Args:
        split: "train" (1,397 images) or "heldout" (400 images, 40 of every class).

    Returns:
        image_NxHxWxC: uint8 [N, 8, 8, 1], 0 for paper and 255 for full ink;
            round(level / 16 * 255) of the published levels 0 to 16.
        label_N: int32 [N], the digit, 0 to 9.

    Raises:
        ValueError: `split` is neither of the two.
    """
    if split not in get_args(Split):
        allowed = " or ".join(repr(name) for name in get_args(Split))
        raise ValueError(f"split is {split!r}, but the digits have only {allowed}.")
    level_NxD, label_N = load_digits(return_X_y=True)
    level_NxD, label_N = np.asarray(level_NxD), np.asarray(label_N, np.int32)
    image_NxD = np.round(level_NxD / _MAX_LEVEL * 255).astype(np.uint8)
    image_NxHxWxC = image_NxD.reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 1)

    chosen_N = np.zeros(len(label_N), bool)
    chosen_N[_heldout_rows(label_N)] = True
    if split == "train":
        chosen_N = ~chosen_N
    return image_NxHxWxC[chosen_N], label_N[chosen_N]
