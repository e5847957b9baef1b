"""Makes a smaller model of a trained one, by steps that are done in order."""

import argparse
from pathlib import Path

from dit_moe.commands.endings import say_sampling
from dit_moe.config.command_line import command_parser, end, run_command, words
from dit_moe.config.run_flags import add_parameters_flag, average_wanted

EPILOG = """\
examples:
  python -m dit_moe.surgery.compress --workdir runs/digits --output out/small --steps drop:keep=6
  python sample.py --workdir out/small --output out/samples

A step is NAME or NAME:KEY=VALUE,KEY=VALUE; docs/compression.md lists them and helps to choose.
OUTPUT is an open folder as of python -m dit_moe.convert, with compressed.json, which tells what was
done. The same command again goes on after the last step that was done, kept in OUTPUT.steps.
"""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_parser("python -m dit_moe.surgery.compress", __doc__, EPILOG)
    add = parser.add_argument
    add("--workdir", required=True, help="run folder, exported folder or hub name")
    add("--output", required=True, type=Path, help="folder of the smaller model; must be new")
    add("--steps", nargs="+", default=[], metavar="STEP", help="what is done, in order")
    add("--recipe", metavar="NAME", help="a chain of steps that has a name, in place of --steps")
    add_parameters_flag(parser, None)
    add = parser.add_argument_group(
        "calibration: what the network is shown, for steps that ask what it does"
    ).add_argument
    add(
        "--data",
        default="",
        metavar="FOLDER[,FOLDER]",
        help="a prepared set, in place of the data that the run learnt from",
    )
    add("--images", type=int, help="shown at each time (default: 64)")
    add("--times", type=int, help="how many, spread as steps of sampling are (default: 25)")
    add(
        "--null_share",
        type=float,
        help="share of the images without a class (default: half where the run samples with "
        "guidance, else as in its training)",
    )
    add("--batch_size", type=int, help="images at once (default: 64)")
    add(
        "--sums",
        type=Path,
        metavar="FOLDER",
        help="keeps what was found of it, for further commands with the same model",
    )
    add("--seed", type=int, help="of all that is random in it (default: 0)")
    arguments = parser.parse_args(argv)
    return run_command(lambda: run(arguments), resumes=True)


def run(arguments: argparse.Namespace) -> None:
    """Compresses."""
    # After the arguments are parsed: JAX takes seconds to import.
    from dit_moe.surgery.compress.chain import compress
    from dit_moe.surgery.compress.methods import chosen_steps

    steps = chosen_steps(arguments.steps, arguments.recipe)
    names = ("images", "times", "null_share", "batch_size", "seed")
    calibration = {name: getattr(arguments, name) for name in names}
    record = compress(
        arguments.workdir,
        arguments.output,
        steps,
        ema=average_wanted(arguments),
        sums=arguments.sums,
        calibration={**calibration, "data": words(arguments.data)},
    )
    before, after = record.before, record.after
    print(
        f"{before.bytes:,} bytes became {after.bytes:,} ({after.bytes / before.bytes:.1%}), "
        f"{before.parameters:,} parameters {after.parameters:,}. Wrote {arguments.output}."
    )
    say_sampling(arguments.output, raw=record.parameters == "raw")


if __name__ == "__main__":
    end(main)
