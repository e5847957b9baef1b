"""Judges samples of digits, and real held-out digits as the ceiling, by the same yardstick."""

import copy
import functools
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
import sklearn

from dit_moe.data import digits

from .. import metrics
from ..image_set import ImageSetError
from ..statistics import Gaussian, SmallSetWarning, fit_gaussian
from .blocks import stratified_blocks
from .judges import CLASSIFIER, FEATURES, Judges, pixels, train

_CLOSE_PERCENTILE = 5


@dataclass(frozen=True)
class _Yardstick:
    """What all sets are compared with."""

    judges: Judges
    train_pixels: np.ndarray
    """float64 [M, 64]."""
    train_features: Gaussian
    copy_distance: float
    """The smallest distance of a held-out digit to a training digit."""
    close_distance: float
    """The 5th percentile of those distances."""


def _yardstick() -> _Yardstick:
    judges = train()
    train_x_MxP = pixels(digits.load("train")[0])
    heldout_x_NxP = pixels(digits.load("heldout")[0])
    distance_N, _ = metrics.nearest_distances(heldout_x_NxP, train_x_MxP)
    return _Yardstick(
        judges,
        train_x_MxP,
        fit_gaussian(judges.features(train_x_MxP)),
        copy_distance=float(distance_N.min()),
        close_distance=float(np.percentile(distance_N, _CLOSE_PERCENTILE)),
    )


def _judge(
    yardstick: _Yardstick, image_NxHxWxC: np.ndarray, label_N: np.ndarray, block_size: int
) -> dict[str, Any]:
    x_NxP = pixels(image_NxHxWxC)

    f_NxD = yardstick.judges.features(x_NxP)
    blocks = stratified_blocks(label_N, block_size)
    with warnings.catch_warnings():
        # `evaluate` tells of small sets in a note of its own.
        warnings.simplefilter("ignore", SmallSetWarning)
        frechet_distances = [
            metrics.frechet_distance(fit_gaussian(f_NxD[rows]), yardstick.train_features)
            for rows in blocks
        ]

    right_N = yardstick.judges.classify(x_NxP) == label_N
    of_class = {label: right_N[label_N == label] for label in range(digits.NUM_CLASSES)}
    distance_N, _ = metrics.nearest_distances(x_NxP, yardstick.train_pixels)
    return {
        "count": len(label_N),
        "count_per_class": {str(label): len(right) for label, right in of_class.items()},
        "frechet_distance": float(np.mean(frechet_distances)),
        "frechet_sets": len(blocks),
        "frechet_images_per_set": len(blocks[0]),
        "asked_class_accuracy": float(right_N.mean()),
        "asked_class_accuracy_per_class": {
            str(label): float(right.mean()) if len(right) else None
            for label, right in of_class.items()
        },
        "nearest_train_distance": {
            "smallest": float(distance_N.min()),
            "median": float(np.median(distance_N)),
            "mean": float(distance_N.mean()),
            "largest": float(distance_N.max()),
        },
        "close_to_train_share": float((distance_N < yardstick.close_distance).mean()),
        "copies_of_train": int((distance_N < yardstick.copy_distance).sum()),
        "exact_copies_of_train": int((distance_N == 0).sum()),
    }


def _notes(label_N: np.ndarray, block_size: int) -> list[str]:
    notes = []
    if len(label_N) < block_size:
        notes.append(
            f"{len(label_N)} samples are fewer than the {block_size} images behind the ceiling, so "
            "their Fréchet distance is biased up."
        )
    elif len(label_N) > block_size:
        num_blocks = len(label_N) // block_size
        notes.append(
            f"The samples' Fréchet distance is the average over {num_blocks} disjoint random "
            f"set(s) of {block_size} images, as many as behind the ceiling, each with the class "
            "shares of all samples."
        )
    count_C = np.bincount(label_N, minlength=digits.NUM_CLASSES)
    if count_C.max() > 2 * count_C.min():
        notes.append(
            f"The samples have {count_C.min()} to {count_C.max()} images per class, which raises "
            "their Fréchet distance from the real digits, whose classes are balanced."
        )
    return notes


@functools.cache
def _real() -> tuple[_Yardstick, dict[str, Any]]:
    """The yardstick and the ceiling, made once per process."""
    yardstick = _yardstick()
    image_NxHxWxC, label_N = digits.load("heldout")
    return yardstick, _judge(yardstick, image_NxHxWxC, label_N, len(label_N))


def evaluate(image_NxHxWxC: np.ndarray, label_N: np.ndarray) -> dict[str, Any]:
    """Judges samples, and real held-out digits as the ceiling.

    Args:
        image_NxHxWxC: uint8 [N, 8, 8, C], N >= 2, C of 1 or 3 (channels are averaged); 0 for
            paper, 255 for ink.
        label_N: integers [N], 0 to 9: the digit that each image was asked to show.

    Returns:
        Plain numbers and strings, ready for JSON. "samples" and "heldout" hold the same fields:
        `frechet_distance` from the real training digits on features of a digit classifier,
        `asked_class_accuracy` by an independent classifier, `nearest_train_distance` in pixel
        space, and counts of likely copies. "protocol" says how they were made, "notes" what a
        reader of these numbers must know.

    Raises:
        ImageSetError: the images are not 8x8 or fewer than 2, or a label is not a digit.
    """
    shape, dtype = image_NxHxWxC.shape, image_NxHxWxC.dtype
    size = digits.IMAGE_SIZE
    if dtype != np.uint8 or len(shape) != 4 or shape[1:] not in ((size, size, 1), (size, size, 3)):
        raise ImageSetError(
            f"The images are {dtype} {shape}, but digits must be uint8 [N, {size}, {size}, C] "
            "with C of 1 or 3."
        )
    if len(image_NxHxWxC) < 2:
        raise ImageSetError(f"There are {len(image_NxHxWxC)} samples, but at least 2 are needed.")
    if label_N.shape != shape[:1]:
        raise ImageSetError(f"The labels have shape {label_N.shape}, but must be ({shape[0]},).")
    wrong_N = (label_N < 0) | (label_N >= digits.NUM_CLASSES)
    if wrong_N.any():
        raise ImageSetError(
            f"A label is {label_N[wrong_N][0]}, but digits are 0 to {digits.NUM_CLASSES - 1}."
        )

    yardstick, ceiling = _real()
    samples = _judge(yardstick, image_NxHxWxC, label_N, ceiling["count"])
    return {
        "samples": samples,
        "heldout": copy.deepcopy(ceiling),
        "frechet_ratio_to_heldout": samples["frechet_distance"] / ceiling["frechet_distance"],
        "notes": _notes(label_N, ceiling["count"]),
        "protocol": {
            "reference": f"{len(yardstick.train_pixels)} real training digits of scikit-learn",
            "frechet_features": FEATURES,
            "asked_class_classifier": CLASSIFIER,
            "nearest_train_distance": "Euclidean over 64 pixels, paper 0, ink 1",
            "close_below_distance": yardstick.close_distance,
            "copy_below_distance": yardstick.copy_distance,
        },
        "versions": {
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "scikit-learn": sklearn.__version__,
        },
    }
