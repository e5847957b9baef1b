"""Pairs of images, such as pictures and edges: a model learns to draw either from the other."""

import sys
from collections.abc import Sequence

from dit_moe.commands import pairs_sample, pairs_train
from dit_moe.config.command_line import command_parser, end

EPILOG = """\
examples:
  python -m dit_moe.pairs train --from runs/digits --pair edges --workdir runs/digits-edges
  python -m dit_moe.pairs sample --workdir runs/digits-edges --task both --output out/

python -m dit_moe.pairs train --help and python -m dit_moe.pairs sample --help tell their flags;
docs/pairs.md shows what comes of it.
"""
_WORK = {"train": pairs_train.main, "sample": pairs_sample.main}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = command_parser("python -m dit_moe.pairs", __doc__, EPILOG)
    parser.add_argument("what", choices=tuple(_WORK), help="train: let a run learn; sample: draw")
    return _WORK[parser.parse_args(words[:1]).what](words[1:])


if __name__ == "__main__":
    end(main)
