"""Trains a model to write a target text for each source text.

Run the same command again to resume.
"""

import argparse
import functools
from pathlib import Path

from dit_moe.commands.endings import train_to_the_end
from dit_moe.config.command_line import command_parser, run_command, words

EPILOG = """\
examples:
  python -m dit_moe.text train --workdir runs/numbers
  python -m dit_moe.text train --workdir runs/numbers-plain --plain
  python -m dit_moe.text train --workdir runs/numbers-moe --config.model.moe.num_experts=4 \\
      --config.model.moe.hidden_ratio=2
  python -m dit_moe.text train --workdir runs/questions --data train.tsv --heldout valid.tsv \\
      --config.model.source_length=64 --config.model.target_length=64

Without --data the texts are numbers in words (--config.data.languages=en,fr). A file has a source,
a tab and a target in each line, in UTF-8. Any field of the config, which the run folder's
config.json shows, can be set with --config.FIELD=VALUE. Exit codes as of python train.py.
"""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_parser("python -m dit_moe.text train", __doc__, EPILOG)
    add = parser.add_argument
    add("--workdir", required=True, type=Path, help="run folder, made if missing")
    add("--data", default="", metavar="TSV", help="pairs to learn (default: numbers in words)")
    add("--heldout", default="", metavar="TSV", help="with --data: pairs to validate with")
    add(
        "--plain",
        action="store_true",
        help="the plain encoder-decoder with as many parameters: the encoder does not read the "
        "decoder, and the feed-forwards are wider",
    )
    add(
        "--override_resume",
        default="",
        metavar="FIELD,FIELD",
        help="as of python train.py: fields of config.train that may differ from the run's",
    )
    arguments, overrides = parser.parse_known_args(argv)
    return run_command(lambda: run(arguments, overrides), resumes=True)


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Trains; returns the exit code."""
    # After the arguments are parsed: JAX takes seconds to import.
    from dit_moe.config.files import override
    from dit_moe.text.config import TextConfig
    from dit_moe.text.start import of_files, plain
    from dit_moe.text.training import train_on_texts

    config = of_files(TextConfig(), arguments.data, arguments.heldout)
    config = override(config, overrides)
    workdir: Path = arguments.workdir
    training = functools.partial(
        train_on_texts,
        plain(config) if arguments.plain else config,
        workdir,
        override_resume=words(arguments.override_resume),
    )
    return train_to_the_end(training, workdir, "python -m dit_moe.text eval --workdir {workdir}")
