"""Judges samples of handwritten digits beside real held-out digits.

    python -m eval.digits --samples out/samples.npz --output out/result.json

Every number is given twice: for the samples, and for 400 real digits that nothing was trained on.
The latter is the ceiling: what a perfect generator would get.
"""

import argparse
import copy
import functools
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import sklearn

from dit_moe.config.command_line import command_parser, end, run_command
from dit_moe.data import digits
from dit_moe.storage import files

from . import digit_judges, digits_picture, metrics, npz_images
from .image_sets import ImageSetError
from .statistics import Gaussian, SmallSetWarning, fit_gaussian

_BLOCK_SEED = 0
_CLOSE_PERCENTILE = 5

_HELP = """\
Judges samples of handwritten digits and prints a table with two columns: the samples, and 400
real digits held out from all training (the ceiling: what a perfect generator would get).

Frechet distance       Between features of the samples and of the 1,397 real training digits.
                       The features come from a small digit classifier trained on those digits,
                       so this is not FID. Lower is better; compare it with the ceiling.
                       It is biased up for small sets. More than 400 samples are therefore judged
                       in disjoint sets of 400, and the distances averaged.
Asked class            Share of images in which an independent classifier, trained on the same
                       real digits, sees the class that was asked for. Higher is better.
Nearest training digit Distance to the most similar training digit (root of the summed squared
                       differences over 64 pixels, paper 0, ink 1). A median far below the ceiling
                       means memorisation, far above it means images that are not digits.
Close to training      Share nearer to a training digit than all but the nearest 5% of the
                       held-out digits are. Well above 5% means memorisation.
Copies                 Images nearer to a training digit than any held-out digit is.
"""

_EXAMPLE = """\
example:
  python -m eval.digits --samples out/samples.npz --output out/result.json --picture out/digits.png

Draw 40 samples of every class, or a multiple of that, for a fair Frechet distance.
"""


@dataclass(frozen=True)
class _Yardstick:
    """What all sets are compared with."""

    judges: digit_judges.Judges
    train_pixels: np.ndarray
    """float64 [M, 64]."""
    train_features: Gaussian
    copy_distance: float
    """The smallest distance of a held-out digit to a training digit."""
    close_distance: float
    """The 5th percentile of those distances."""


def _yardstick() -> _Yardstick:
    judges = digit_judges.train()
    train_x_MxP = digit_judges.pixels(digits.load("train")[0])
    heldout_x_NxP = digit_judges.pixels(digits.load("heldout")[0])
    distance_N, _ = metrics.nearest_distances(heldout_x_NxP, train_x_MxP)
    return _Yardstick(
        judges,
        train_x_MxP,
        fit_gaussian(judges.features(train_x_MxP)),
        copy_distance=float(distance_N.min()),
        close_distance=float(np.percentile(distance_N, _CLOSE_PERCENTILE)),
    )


def stratified_blocks(label_N: np.ndarray, size: int) -> list[np.ndarray]:
    """Disjoint sets of `size` rows, each with the shares of classes that the whole has.

    Args:
        label_N: integers [N].
        size: rows of a block.

    Returns:
        N // size arrays of ascending rows, int64 [size], drawn at random from a fixed seed; what
        is left over is unused. All rows in one block if N <= size.
    """
    if len(label_N) <= size:
        return [np.arange(len(label_N))]
    shuffled_N = np.random.RandomState(_BLOCK_SEED).permutation(len(label_N))
    # The share of its class that comes before a row: cut along it, every piece has all classes.
    rank_N = np.empty(len(label_N))
    for label in np.unique(label_N):
        rows = shuffled_N[label_N[shuffled_N] == label]
        rank_N[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    order_N = shuffled_N[np.argsort(rank_N[shuffled_N], kind="stable")]
    num_blocks = len(label_N) // size
    return [np.sort(block) for block in np.split(order_N[: num_blocks * size], num_blocks)]


def _judge(
    yardstick: _Yardstick, image_NxHxWxC: np.ndarray, label_N: np.ndarray, block_size: int
) -> dict[str, Any]:
    x_NxP = digit_judges.pixels(image_NxHxWxC)

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
            "frechet_features": digit_judges.FEATURES,
            "asked_class_classifier": digit_judges.CLASSIFIER,
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


def table(result: dict[str, Any]) -> str:
    """The result of `evaluate` for people: aligned columns, then the notes."""
    columns = [result["samples"], result["heldout"]]
    few = columns[0]["frechet_images_per_set"] < columns[1]["frechet_images_per_set"]
    rows = [
        ("", ["samples", "held-out real digits (ceiling)"]),
        ("images", [f"{column['count']:,}" for column in columns]),
        (
            "Fréchet distance, digit-classifier features",
            [
                f"{column['frechet_distance']:.3f}{mark}"
                for column, mark in zip(columns, (" (biased up)" if few else "", ""), strict=True)
            ],
        ),
        ("asked class recognised", [f"{c['asked_class_accuracy']:.1%}" for c in columns]),
        (
            "distance to nearest training digit, median",
            [f"{column['nearest_train_distance']['median']:.3f}" for column in columns],
        ),
        (
            f"close to training (under {result['protocol']['close_below_distance']:.3f})",
            [f"{column['close_to_train_share']:.1%}" for column in columns],
        ),
        (
            f"copies of training (under {result['protocol']['copy_below_distance']:.3f})",
            [f"{c['copies_of_train']:,}" for c in columns],
        ),
    ]
    widths = [max(len(row[1][i]) for row in rows) for i in range(2)]
    head = max(len(name) for name, _ in rows)
    lines = [
        f"{name:<{head}}  {cells[0]:>{widths[0]}}  {cells[1]:>{widths[1]}}" for name, cells in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    ratio = f"Fréchet distance: {result['frechet_ratio_to_heldout']:.2f} times the ceiling."
    return "\n".join([*lines, "", ratio, *result["notes"]])


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m eval.digits", _HELP, _EXAMPLE)
    parser.add_argument(
        "--samples",
        type=Path,
        required=True,
        metavar="NPZ",
        help="arr_0: uint8 [N, 8, 8, 1 or 3]; arr_1: the digit asked for, [N]; as sample.py writes",
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="JSON", help="where all numbers are written"
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="PNG",
        help="where a picture of samples beside real digits is written, one row per class",
    )
    return parser


def _run(samples: Path, output: Path, picture: Path | None) -> str:
    """Judges, writes, and returns the table.

    Raises:
        ImageSetError, OSError: for the user to mend.
    """
    targets = [path for path in (output, picture) if path is not None]
    if len({os.path.realpath(path) for path in (samples, *targets)}) <= len(targets):
        raise OSError("--samples, --output and --picture must name different files.")
    for path in targets:
        if path.is_dir():
            raise OSError(f"{path} is a folder, but must name a file.")
    if picture is not None and picture.suffix.lower() != ".png":
        raise OSError(f"--picture is {picture}, but must end in .png.")

    image_set = npz_images.open_npz(samples)
    label_N = image_set.label
    if label_N is None:
        raise ImageSetError(f"{samples} has no labels (arr_1).")
    image_NxHxWxC = image_set.read()
    result = evaluate(image_NxHxWxC, label_N)
    result["samples_file"] = {"path": str(samples), "sha256": files.sha256(samples)}
    # All is made before the first file is written.
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    contents = [text.encode(errors="replace")]  # names of files need not be text
    if picture is not None:
        contents.append(digits_picture.draw(image_NxHxWxC, label_N))
    for path, content in zip(targets, contents, strict=True):
        try:
            with files.atomic(path) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            raise OSError(f"{path} cannot be written ({error.strerror or error}).") from error
    return table(result)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = _parser().parse_args(arguments)
    return run_command(
        lambda: print(_run(options.samples, options.output, options.picture)), ImageSetError
    )


if __name__ == "__main__":
    end(main)
