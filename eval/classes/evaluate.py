"""Judges samples, and real held-out images as the ceiling, by the same yardstick."""

import copy
import functools
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
import sklearn

from .. import metrics
from ..image_set import ImageSetError
from ..statistics import Gaussian, SmallSetWarning, fit_gaussian
from .blocks import stratified_blocks
from .judged import Judged, embedded
from .judges import Judges, train

_CLOSE_PERCENTILE = 5


@dataclass(frozen=True)
class _Yardstick:
    """What all sets are compared with."""

    judges: Judges
    train_values: np.ndarray
    """float64 [M, P]."""
    train_features: Gaussian
    copy_distance: float
    """The smallest distance of a held-out image to a training image."""
    close_distance: float
    """The 5th percentile of those distances."""


def _yardstick(data: Judged) -> _Yardstick:
    judges = train(data)
    train_x_MxP = data.describe(data.train.image)
    distance_N, _ = metrics.nearest_distances(data.describe(data.heldout.image), train_x_MxP)
    return _Yardstick(
        judges,
        train_x_MxP,
        fit_gaussian(judges.features(train_x_MxP)),
        copy_distance=float(distance_N.min()),
        close_distance=float(np.percentile(distance_N, _CLOSE_PERCENTILE)),
    )


def _judge(
    yardstick: _Yardstick,
    data: Judged,
    image_NxHxWxC: np.ndarray,
    label_N: np.ndarray,
    block_size: int,
) -> dict[str, Any]:
    x_NxP = data.describe(image_NxHxWxC)

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
    of_class = {name: right_N[label_N == place] for place, name in enumerate(data.classes)}
    distance_N, _ = metrics.nearest_distances(x_NxP, yardstick.train_values)
    return {
        "count": len(label_N),
        "count_per_class": {name: len(right) for name, right in of_class.items()},
        "frechet_distance": float(np.mean(frechet_distances)),
        "frechet_sets": len(blocks),
        "frechet_images_per_set": len(blocks[0]),
        "asked_class_accuracy": float(right_N.mean()),
        "asked_class_accuracy_per_class": {
            name: float(right.mean()) if len(right) else None for name, right in of_class.items()
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


def _notes(label_N: np.ndarray, data: Judged) -> list[str]:
    block_size = len(data.heldout.label)
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
    count_C, real_C = (
        np.bincount(labels, minlength=len(data.classes)) for labels in (label_N, data.train.label)
    )
    # Shares of the samples over those of the training images.
    share_C = count_C / real_C
    if share_C.max() > 2 * share_C.min():
        notes.append(
            f"The samples have {count_C.min()} to {count_C.max()} images per class, which raises "
            f"their Fréchet distance from the real ones, which are {real_C.min()} to "
            f"{real_C.max()}."
        )
    return notes


@functools.lru_cache(maxsize=2)
def _real(data: Judged) -> tuple[_Yardstick, dict[str, Any]]:
    """The yardstick and the ceiling, made once per process."""
    yardstick = _yardstick(data)
    return yardstick, _judge(yardstick, data, *data.heldout, len(data.heldout.label))


def evaluate(
    image_NxHxWxC: np.ndarray, label_N: np.ndarray, data: Judged | None = None
) -> dict[str, Any]:
    """Judges samples, and real held-out images as the ceiling.

    Args:
        image_NxHxWxC: uint8 [N, H, W, C], N >= 2, of the size of the data's images; for digits C
            may be 1 or 3 (channels are averaged), 0 for paper and 255 for ink.
        label_N: integers [N], places in `data.classes`: what each image was asked to show.
        data: what they are samples of; None: the digits.

    Returns:
        Plain numbers and strings, ready for JSON. "samples" and "heldout" hold the same fields:
        `frechet_distance` from the real training images on features of a classifier of them,
        `asked_class_accuracy` by an independent classifier, `nearest_train_distance` between
        values, and counts of likely copies. "protocol" says how they were made, "notes" what a
        reader of these numbers must know.

    Raises:
        ImageSetError: the images are of another size or fewer than 2, or a label is no class; or
            nothing was held out.
    """
    data = data or embedded("digits")
    shape, dtype = image_NxHxWxC.shape, image_NxHxWxC.dtype
    allowed = [(*data.size, channels) for channels in data.channels]
    if dtype != np.uint8 or len(shape) != 4 or shape[1:] not in allowed:
        raise ImageSetError(
            f"The images are {dtype} {shape}, but those of {data.name} must be uint8 "
            f"[N, {data.size[0]}, {data.size[1]}, C] with C of "
            f"{' or '.join(map(str, data.channels))}."
        )
    if len(image_NxHxWxC) < 2:
        raise ImageSetError(f"There are {len(image_NxHxWxC)} samples, but at least 2 are needed.")
    if label_N.shape != shape[:1]:
        raise ImageSetError(f"The labels have shape {label_N.shape}, but must be ({shape[0]},).")
    wrong_N = (label_N < 0) | (label_N >= len(data.classes))
    if wrong_N.any():
        raise ImageSetError(
            f"A label is {label_N[wrong_N][0]}, but those of {data.name} are 0 to "
            f"{len(data.classes) - 1}."
        )

    yardstick, ceiling = _real(data)
    if ceiling["exact_copies_of_train"] == ceiling["count"]:
        raise ImageSetError(
            f"All {ceiling['count']:,} held-out images are training images of {data.name}, and so "
            "no ceiling; allowed: --heldout with images that nothing was trained on."
        )
    samples = _judge(yardstick, data, image_NxHxWxC, label_N, ceiling["count"])
    return {
        "samples": samples,
        "heldout": copy.deepcopy(ceiling),
        "frechet_ratio_to_heldout": samples["frechet_distance"] / ceiling["frechet_distance"],
        "notes": _notes(label_N, data),
        "protocol": {
            "reference": f"{len(data.train.label)} real training images of {data.name}",
            "frechet_features": yardstick.judges.description,
            "asked_class_classifier": yardstick.judges.classifier,
            "nearest_train_distance": (
                f"Euclidean over {yardstick.train_values.shape[1]} values from 0 to 1"
            ),
            "close_below_distance": yardstick.close_distance,
            "copy_below_distance": yardstick.copy_distance,
        },
        "versions": {
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "scikit-learn": sklearn.__version__,
        },
    }
