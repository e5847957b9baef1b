"""Turns pictures into a data set for training: crops, or latents of an autoencoder."""

import argparse
import csv
import os
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dit_moe.config.command_line import command_parser, end, run_command, words
from dit_moe.config.verbs import spoken

if TYPE_CHECKING:
    from dit_moe.data.prepare.job import Job, Settings
    from dit_moe.data.prepared import Card

EPILOG = """\
examples:
  python -m dit_moe.data.prepare --input photos/ --output data/photos-64 \\
      --autoencoder none --image_size 64
  python -m dit_moe.data.prepare --source tfds --input imagenet2012 --output data/imagenet256 \\
      --autoencoder stabilityai/sd-vae-ft-mse --image_size 256 --dtype bfloat16

The input is a folder with one folder per class, of pictures without classes, or with EDM's
dataset.json, a .zip of one, files of the format of MNIST, a TFDS data set stored as array_record,
files of WebDataset (.tar) or of the Hugging Face hub (.parquet): one, a pattern such as
'train-{000..123}.tar', or a folder of them; or ready-made latents of fast-DiT or EDM2.
Every picture is cut to a centred square, or to another rectangle. Pictures that cannot be used are
left out and listed in rejected.csv with the reason. A run that was interrupted goes on where it
stopped when the same command is given again; on a finished set the command verifies every file.
docs/data.md says more.
"""


def build_parser(program: str, description: str | None) -> argparse.ArgumentParser:
    """The flags that all ways of running the work share."""
    parser = command_parser(f"python -m {program}", description, EPILOG)
    add = parser.add_argument
    add("--input", required=True, help="folder, .zip, idx, .tar or .parquet files, or TFDS name")
    add("--output", required=True, type=Path, help="folder for the data set: new, or to go on with")
    add(
        "--autoencoder",
        required=True,
        help="folder, .safetensors file or Hugging Face name; none keeps the pictures themselves",
    )
    add(
        "--image_size",
        required=True,
        metavar="SIZE",
        help="side of the square pictures in pixels, or height and width: 48x64",
    )
    add(
        "--channels",
        type=int,
        metavar="1|2|3|4",
        help="grey, grey with alpha, RGB, or RGB with alpha; without alpha what is transparent "
        "lies on white (default: 3; of idx files 1)",
    )
    _add_reading_flags(parser)
    _add_making_flags(parser)
    return parser


def _add_reading_flags(parser: argparse.ArgumentParser) -> None:
    """How the input is to be read."""
    add = parser.add_argument
    add(
        "--source",
        choices=(
            "auto",
            "image_folder",
            "zip",
            "tfds",
            "idx",
            "webdataset",
            "parquet",
            "fast_dit",
            "edm2",
        ),
        default="auto",
        help="what the input is (default: auto, by its looks)",
    )
    add(
        "--split",
        default="train",
        help="of a TFDS data set (parts too: train[:10%%]) or of files whose names tell splits "
        "(default: train)",
    )
    add(
        "--class_names",
        default="",
        metavar="A,B",
        help="what the classes 0, 1, ... are called, where the input only numbers them",
    )
    add(
        "--follow_links",
        action="store_true",
        help="of a folder: follow links, wherever they lead (default: class folders alone may be)",
    )
    add(
        "--latent_scale",
        type=float,
        help="of fast-DiT's latents: what they were multiplied by, 1 for raw ones (default: the "
        "autoencoder's scaling factor)",
    )


def _add_making_flags(parser: argparse.ArgumentParser) -> None:
    """How the set is to be made."""
    add = parser.add_argument
    add("--name", help="of the data set: a-z, 0-9, _ (default: from the output folder)")
    add(
        "--images_per_shard",
        type=int,
        default=1024,
        help="pictures per file; what an interrupted run loses at most (default: 1024)",
    )
    add(
        "--batch_size",
        type=int,
        default=32,
        help="pictures per device in one pass of the autoencoder (default: 32)",
    )
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="what the autoencoder computes in; bfloat16 is for GPUs and TPUs (default: float32)",
    )
    add(
        "--max_rejected",
        type=float,
        default=0.05,
        help="share of pictures that may be left out before it counts as an error (default: 0.05)",
    )
    add(
        "--validation_share",
        type=float,
        default=0.0,
        help="share of pictures that are held out, so that training measures the loss on them; a "
        "picture's name decides (default: 0)",
    )


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = build_parser("dit_moe.data.prepare", __doc__)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument(
        "--workers", type=int, default=cores, help="processes that decode (default: one per core)"
    )
    arguments = parser.parse_args(argv)

    def make(job: "Job", missing: Sequence[int]) -> None:
        from dit_moe.data.prepare.local import make_shards

        make_shards(job, missing, arguments.workers)

    return run(arguments, make)


def run(arguments: argparse.Namespace, make: Callable[["Job", Sequence[int]], None]) -> int:
    """Prepares the set that the arguments of `build_parser` name; returns the exit code.

    Args:
      arguments: parsed.
      make: makes shards by number, and writes their records.
    """
    # After the arguments are parsed: these take a second to import.
    from dit_moe.config import ConfigError
    from dit_moe.data.prepare.job import Job, PrepareError
    from dit_moe.data.prepare.whole import prepare

    def work() -> None:
        if not 0 <= arguments.max_rejected <= 1:
            raise ConfigError(f"max_rejected is {arguments.max_rejected}; allowed: 0 to 1")
        job = Job(_settings(arguments))
        _describe(job)
        card, verified = prepare(job, make, arguments.max_rejected)
        _report(arguments.output, card, verified)

    return run_command(work, PrepareError, resumes=True)


def _settings(arguments: argparse.Namespace) -> "Settings":
    from dit_moe.config import ConfigError
    from dit_moe.config.sizes import parse_size
    from dit_moe.data.prepare.job import Settings

    name = arguments.name
    if name is None:
        name = re.sub(r"[^a-z0-9]+", "_", arguments.output.resolve().name.lower()).strip("_")
        name = name if re.match("[a-z]", name) else f"set_{name}"
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise ConfigError(f"name is {name!r}; allowed: a-z, 0-9 and _, a letter first")
    try:
        image_size = parse_size(arguments.image_size)
    except ValueError as error:
        raise ConfigError(f"image_size is {arguments.image_size}; {error}") from None
    return Settings(
        source=arguments.source,
        input=arguments.input,
        split=arguments.split,
        output=arguments.output,
        name=name,
        autoencoder=None if arguments.autoencoder == "none" else arguments.autoencoder,
        dtype=arguments.dtype,
        image_size=image_size,
        channels=arguments.channels,
        class_names=words(arguments.class_names),
        batch_size=arguments.batch_size,
        images_per_shard=arguments.images_per_shard,
        validation_share=arguments.validation_share,
        follow_links=arguments.follow_links,
        latent_scale=arguments.latent_scale,
    )


def _describe(job: "Job") -> None:
    from dit_moe.data.prepare.input import UNCONDITIONAL

    print(
        f"{job.settings.input}: {len(job.input.entries):,} pictures in "
        f"{len(job.input.classes):,} classes ({job.input.kind}), {job.num_shards:,} shards."
    )
    if job.input.classes == UNCONDITIONAL:
        print("There are no classes: the set is unconditional, with one class called 'all'.")
    if job.input.latents is not None:
        low, high = job.input.latents.pixel_range
        print(
            f"They are ready-made latents, multiplied by {job.latent_scale[0]:g}, of pictures from "
            f"{low:g} (black) to {high:g} (white), without mirror images."
        )
    if job.input.ignored:
        print(
            f"{job.input.ignored:,} files outside of the class folders, or that dataset.json does "
            "not name as pictures, are ignored."
        )


def _report(output: Path, card: "Card", verified: bool) -> None:
    from dit_moe.data.prepare.whole import REJECTED

    with (output / REJECTED).open(newline="", encoding="utf-8") as file:
        rejected = sum(1 for _ in csv.reader(file)) - 1
    print(
        f"{output} was finished before; every file is as it was written."
        if verified
        else f"Wrote {output}."
    )
    heldout = f" and {card.num_validation:,} held out" if card.num_validation else ""
    print(
        f"{card.num_examples:,} examples of {'x'.join(map(str, card.shape))} in "
        f"{len(card.classes):,} classes{heldout}; {rejected:,} rejected ({output / REJECTED})."
    )
    if card.latent_mean is not None and card.latent_std is not None:
        for title, values in (("mean", card.latent_mean), ("std", card.latent_std)):
            print(f"latent {title:>4} per channel: {'  '.join(f'{v:8.4f}' for v in values)}")
        assert card.autoencoder is not None
        scaled = card.autoencoder.scaling_factor * sum(card.latent_std) / len(card.latent_std)
        if not card.mirrored and not 0.3 < scaled < 3:
            print(
                f"Times the autoencoder's scaling factor that is {scaled:.3g}, where about 1 is "
                "usual: is --latent_scale right, and is this the autoencoder that made them?"
            )
    config = shlex.quote(f"configs/prepared.py:{output}")
    print(spoken(f"next: python train.py --config {config} --workdir runs/{card.name}"))


if __name__ == "__main__":
    end(main)
