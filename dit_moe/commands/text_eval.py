"""Judges a run on texts by held-out pairs: exact match, BLEU, ROUGE-L, distinct-n."""

import argparse
import json
from pathlib import Path

from dit_moe.commands.text_flags import add_writer_flags, described, open_writer
from dit_moe.config.command_line import command_parser, run_command

EPILOG = """\
examples:
  python -m dit_moe.text eval --workdir runs/numbers
  python -m dit_moe.text eval --workdir runs/questions --pairs test.tsv --candidates 10 \\
      --output questions.json
"""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_parser("python -m dit_moe.text eval", __doc__, EPILOG)
    add = parser.add_argument
    add("--pairs", type=Path, metavar="TSV", help="default: what the run's data hold out")
    add("--output", type=Path, metavar="JSON", help="file that receives the figures")
    add_writer_flags(parser)
    arguments = parser.parse_args(argv)
    return run_command(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Judges."""
    # After the arguments are parsed: JAX takes seconds to import.
    from dit_moe.config import require
    from dit_moe.storage.files import atomic
    from dit_moe.text.data import load_pairs
    from dit_moe.text.metrics import judge
    from dit_moe.text.pairs_of_text import read_pairs

    writer = open_writer(arguments)
    pairs = (
        read_pairs(arguments.pairs)
        if arguments.pairs
        else load_pairs(writer.run.config.data, "heldout")
    )
    require(bool(pairs), "pairs is none, and the run's data hold nothing out; allowed: --pairs TSV")
    answers = writer.write([pair.source for pair in pairs])
    found = judge([answer.text for answer in answers], [pair.target for pair in pairs])
    for name, value in found.items():
        print(f"{name:<12} {value:.4g}")
    print(f"of {len(pairs):,} pairs at step {writer.run.step:,}.")
    if arguments.output is None:
        return
    record = {**described(arguments, writer), "pairs": len(pairs), **found}
    with atomic(arguments.output) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")
