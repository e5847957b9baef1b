"""The program `dit-moe`: every command as a verb."""

import importlib
import importlib.metadata
import sys
from collections.abc import Sequence
from typing import NoReturn

from dit_moe.config.command_line import end, say_error
from dit_moe.config.verbs import PROGRAM, VERBS, speaking_of_verbs

_HELP = """\
usage: dit-moe VERB ...

Class-conditional image generation with sparse diffusion transformers.

verbs:
{verbs}

first, in some minutes on two CPU cores:
  dit-moe train --config configs/digits.py --workdir runs/digits
  dit-moe sample --workdir runs/digits --num_samples 400 --output out/
  dit-moe judge --samples out/samples.npz --output out/result.json --picture out/digits.png

dit-moe VERB --help tells a verb's flags, with examples. The configs come with the package, under
the names configs/*.py; a file of yours of such a name goes before.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, VERBS))
        lines = [f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items()]
        print(_HELP.format(verbs="\n".join(lines)), end="")
        return 0
    if arguments[0] == "--version":
        print(f"{PROGRAM} {importlib.metadata.version(PROGRAM)}")
        return 0
    name, *rest = arguments
    if name not in VERBS:
        say_error(f"error: verb is {name!r}; allowed: {', '.join(VERBS)} (see {PROGRAM} --help)")
        return 2
    with speaking_of_verbs():
        return importlib.import_module(VERBS[name].module).main(rest)


def run() -> NoReturn:
    """Ends the process with the program's exit code."""
    end(main)


if __name__ == "__main__":
    run()
