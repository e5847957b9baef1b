"""Judges samples of a labelled data set beside real images that were held out.

    python -m eval.classes --samples out/samples.npz --output out/result.json

Every number is given twice: for the samples, and for real images that nothing was trained on.
The latter is the ceiling: what a perfect generator would get.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from dit_moe.config import ConfigError
from dit_moe.config.command_line import command_parser, run_command
from dit_moe.storage import files

from ..npz_images import open_npz
from ..output import as_json, write
from .evaluate import evaluate
from .judged import open_judged, places
from .picture import draw
from .table import table

_HELP = """\
Judges samples of a labelled data set of small images and prints a table with two columns: the
samples, and real images held out from all training (the ceiling: what a perfect generator would
get). Two classifiers are trained on the data first: a second for the digits, a minute for 60,000
images of 28x28.

Frechet distance       Between features of the samples and of the real training images. The
                       features come from a small classifier trained on those, so this is not
                       FID. Lower is better; compare it with the ceiling.
                       It is biased up for small sets. More samples than there are held-out
                       images are therefore judged in disjoint sets of as many, and the
                       distances averaged.
Asked class            Share of images in which an independent classifier, trained on the same
                       real images, sees the class that was asked for. Higher is better.
Nearest training image Distance to the most similar training image (root of the summed squared
                       differences of its values, 0 to 1). A median far below the ceiling means
                       memorisation, far above it means images that are not of this kind.
Close to training      Share nearer to a training image than all but the nearest 5% of the
                       held-out images are. Well above 5% means memorisation.
Copies                 Images nearer to a training image than any held-out image is.
"""

_EXAMPLE = """\
example:
  python -m eval.classes --samples out/samples.npz --output out/result.json --picture digits.png
  python -m eval.classes --data data/fashion --heldout data/fashion-test \\
      --samples out/samples.npz --output out/result.json

Draw as many samples of every class as are held out of it (40 of each digit), or a multiple of that,
for a fair Frechet distance.
"""


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m eval.classes", _HELP, _EXAMPLE)
    parser.add_argument(
        "--samples",
        type=Path,
        required=True,
        metavar="NPZ",
        help="arr_0: uint8 [N, H, W, C]; arr_1: the class asked for, [N]; as sample.py writes",
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="JSON", help="where all numbers are written"
    )
    parser.add_argument(
        "--data",
        default="digits",
        help="what was trained on: digits or patches, or a prepared set (or any labelled set that "
        "eval.fid takes; default: digits)",
    )
    parser.add_argument(
        "--heldout",
        metavar="SET",
        help="a set that nothing was trained on (default: what the data hold out)",
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="PNG",
        help="where a picture of samples beside real images is written, one row per class",
    )
    return parser


def _run(options: argparse.Namespace) -> str:
    """Judges, writes, and returns the table.

    Raises:
        ConfigError: for the user to mend.
        OSError: a file cannot be written.
    """
    samples, picture = options.samples, options.picture
    targets = [path for path in (options.output, picture) if path is not None]
    if len({os.path.realpath(path) for path in (samples, *targets)}) <= len(targets):
        raise ConfigError("--samples, --output and --picture must name different files.")
    for path in targets:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder, but must name a file.")
    if picture is not None and picture.suffix.lower() != ".png":
        raise ConfigError(f"--picture is {picture}, but must end in .png.")

    image_set = open_npz(samples)
    data = open_judged(options.data, options.heldout)
    label_N = places(image_set, data.labels)
    image_NxHxWxC = image_set.read()
    result = evaluate(image_NxHxWxC, label_N, data)
    result["samples_file"] = {"path": str(samples), "sha256": files.sha256(samples)}
    contents = [as_json(result)]  # all is made before the first file is written
    if picture is not None:
        contents.append(draw(image_NxHxWxC, label_N, data))
    for path, content in zip(targets, contents, strict=True):
        write(path, content)
    return table(result)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = _parser().parse_args(arguments)
    return run_command(lambda: print(_run(options)))
