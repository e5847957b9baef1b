"""Writes a model's experts into a file of their own, to draw in less memory than they need."""

import argparse
from pathlib import Path

from dit_moe.config.command_line import command_parser, end, run_command
from dit_moe.config.run_flags import add_checkpoint_flag, add_parameters_flag

EPILOG = """\
examples:
  python -m dit_moe.streaming --workdir runs/xl --output stores/xl
  python -m dit_moe.streaming --workdir runs/xl --dtype float16 --output stores/xl-half
  python sample.py --workdir stores/xl --memory 4GB --output out/

The output, which must be new, takes the place of the run for sample.py and eval, and needs no other
file. A command that fails leaves nothing. docs/large-models.md says more.
"""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_parser("python -m dit_moe.streaming", __doc__, EPILOG)
    add = parser.add_argument
    add("--workdir", required=True, help="run folder, exported folder or hub name")
    add("--output", required=True, type=Path, help="folder for the store; must be new")
    add_parameters_flag(parser)
    add_checkpoint_flag(parser)
    add(
        "--dtype",
        help="float32, bfloat16 or float16, in which matrices are stored; less than the network "
        "computes in is lossy (default: what it computes in)",
    )
    arguments = parser.parse_args(argv)
    return run_command(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Writes the store."""
    # After the arguments are parsed: JAX takes seconds to import.
    from dit_moe.streaming.making import make_store

    store = make_store(
        arguments.workdir,
        arguments.output,
        ema=arguments.parameters == "ema",
        checkpoint=arguments.checkpoint,
        dtype=arguments.dtype,
    )
    print(
        f"Wrote {arguments.output}: {store.bytes / 1e9:.3g} GB of experts in {len(store.layers)} "
        f"layers, {store.dtype}."
    )


if __name__ == "__main__":
    end(main)
