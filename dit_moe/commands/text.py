"""Text from text by diffusion: a model learns pairs of a source and a target."""

import sys
from collections.abc import Sequence

from dit_moe.commands import text_eval, text_sample, text_train
from dit_moe.config.command_line import command_parser, end

EPILOG = """\
examples:
  python -m dit_moe.text train --workdir runs/numbers
  python -m dit_moe.text sample --workdir runs/numbers --source "forty-two" --output out/
  python -m dit_moe.text eval --workdir runs/numbers --output numbers.json

python -m dit_moe.text train --help and the like tell their flags; docs/text.md shows what comes
of it. Needs the extra: pip install 'dit-moe[text]'.
"""
_WORK = {"train": text_train.main, "sample": text_sample.main, "eval": text_eval.main}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = command_parser("python -m dit_moe.text", __doc__, EPILOG)
    parser.add_argument(
        "what", choices=tuple(_WORK), help="train: let a model learn; sample: write; eval: judge"
    )
    return _WORK[parser.parse_args(words[:1]).what](words[1:])


if __name__ == "__main__":
    end(main)
