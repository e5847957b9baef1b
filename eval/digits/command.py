"""Judges samples of handwritten digits beside real held-out digits.

    python -m eval.digits --samples out/samples.npz --output out/result.json

Every number is given twice: for the samples, and for 400 real digits that nothing was trained on.
The latter is the ceiling: what a perfect generator would get.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from dit_moe.config import ConfigError
from dit_moe.config.command_line import command_parser, run_command
from dit_moe.storage import files

from ..image_set import ImageSetError
from ..npz_images import open_npz
from ..output import as_json, write
from .evaluate import evaluate
from .picture import draw
from .table import table

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
        ConfigError: for the user to mend.
        OSError: a file cannot be written.
    """
    targets = [path for path in (output, picture) if path is not None]
    if len({os.path.realpath(path) for path in (samples, *targets)}) <= len(targets):
        raise ConfigError("--samples, --output and --picture must name different files.")
    for path in targets:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder, but must name a file.")
    if picture is not None and picture.suffix.lower() != ".png":
        raise ConfigError(f"--picture is {picture}, but must end in .png.")

    image_set = open_npz(samples)
    label_N = image_set.label
    if label_N is None:
        raise ImageSetError(f"{samples} has no labels (arr_1).")
    image_NxHxWxC = image_set.read()
    result = evaluate(image_NxHxWxC, label_N)
    result["samples_file"] = {"path": str(samples), "sha256": files.sha256(samples)}
    contents = [as_json(result)]  # all is made before the first file is written
    if picture is not None:
        contents.append(draw(image_NxHxWxC, label_N))
    for path, content in zip(targets, contents, strict=True):
        write(path, content)
    return table(result)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = _parser().parse_args(arguments)
    return run_command(lambda: print(_run(options.samples, options.output, options.picture)))
