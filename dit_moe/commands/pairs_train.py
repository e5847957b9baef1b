"""Trains a model to draw pairs of images, from a model of single ones, which stays as it is.

Run the same command again to resume.
"""

import argparse
import functools
from typing import get_args

from etils import epath

from dit_moe.commands.endings import train_to_the_end
from dit_moe.config.command_line import command_parser, run_command, words
from dit_moe.config.data import PairKind

EPILOG = """\
examples:
  python -m dit_moe.pairs train --from runs/digits --pair edges --workdir runs/digits-edges
  python -m dit_moe.pairs train --from runs/patches --pair grey --workdir runs/patches-grey \\
      --config.train.steps=2000 --config.model.pairs.rank=16
  python -m dit_moe.pairs train --from runs/rooms --pair folder --pair_path data/depth \\
      --workdir runs/rooms-depth

The config is that of the run it starts from, with images in pairs and all but the additions frozen
(train.learn); any field of it can be set with --config.FIELD=VALUE. train.batch_size counts both
images of a pair. Exit codes as of python train.py.
"""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_parser("python -m dit_moe.pairs train", __doc__, EPILOG)
    add = parser.add_argument
    add(
        "--from",
        dest="base",
        required=True,
        metavar="RUN",
        help="model of single images: a run folder, an exported folder or a Hugging Face name",
    )
    add("--workdir", required=True, type=epath.Path, help="run folder, made if missing")
    add(
        "--pair",
        required=True,
        choices=get_args(PairKind),
        help="the second images: derived from the first ones, or in folders of their own",
    )
    add(
        "--pair_path",
        default="",
        metavar="FOLDER,...",
        help="with --pair folder: for each prepared folder of the run's data that of the second "
        "images, of files with the same names",
    )
    arguments, overrides = parser.parse_known_args(argv)
    return run_command(lambda: run(arguments, overrides), resumes=True)


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Trains; returns the exit code."""
    # After the arguments are parsed: JAX takes seconds to import.
    from dit_moe.config.files import load_json, override
    from dit_moe.pairs.start import pairs_config
    from dit_moe.runs.loading import locate
    from dit_moe.training.loop import train

    base = load_json(locate(arguments.base, "from") / "config.json")
    config = override(pairs_config(base, arguments.pair, words(arguments.pair_path)), overrides)
    workdir: epath.Path = arguments.workdir
    training = functools.partial(train, config, workdir, init_from=arguments.base)
    then = "python -m dit_moe.pairs sample --workdir {workdir} --task both --output out/"
    return train_to_the_end(training, workdir, then)
