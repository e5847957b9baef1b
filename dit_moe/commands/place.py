"""Orders the experts of a trained model so that fewer tokens travel between devices."""

import argparse
from pathlib import Path

from dit_moe.commands.endings import say_sampling
from dit_moe.commands.shown import add_shown_flags
from dit_moe.config.command_line import command_parser, end, run_command, words
from dit_moe.config.run_flags import add_parameters_flag

EPILOG = """\
examples:
  python -m dit_moe.placement --workdir runs/digits --devices 8
  python -m dit_moe.placement --workdir runs/xl --devices 8 --output out/placed --by position

The network is shown half of the images to see which experts serve which tokens, and the other half
to tell what the new order saves. OUTPUT is an open folder as of python -m dit_moe.convert, whose
model computes the same, with placement.json and placement.npz. docs/scale.md tells when it helps.
"""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_parser("python -m dit_moe.placement", __doc__, EPILOG)
    add = parser.add_argument
    add("--workdir", required=True, help="run folder, exported folder or hub name")
    add(
        "--devices",
        required=True,
        type=int,
        metavar="N",
        help="over how many the experts are spread (mesh.expert)",
    )
    add("--output", type=Path, help="folder for the model in the new order (default: none)")
    add(
        "--by",
        choices=("label", "position"),
        default="label",
        help="what the order is for: images that lie where their class does (default), or tokens "
        "that are sent on by position and time before the router",
    )
    add(
        "--inputs",
        choices=("training", "sampling"),
        default="training",
        help="what the network is shown (default: training)",
    )
    add_shown_flags(parser, "half of them held out")
    add_parameters_flag(parser)
    arguments = parser.parse_args(argv)
    return run_command(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Places."""
    # After the arguments are parsed: JAX takes seconds to import.
    from dit_moe.placement.place import place, write
    from dit_moe.placement.text import text
    from dit_moe.storage.files import check_new

    if arguments.output is not None:
        check_new(arguments.output)
    placed = place(
        arguments.workdir,
        arguments.batch_size,
        devices=arguments.devices,
        by=arguments.by,
        inputs=arguments.inputs,
        data=words(arguments.data),
        num_images=arguments.num_images,
        classes=words(arguments.classes),
        time_bins=arguments.time_bins,
        steps=arguments.steps,
        guidance_scale=arguments.guidance_scale,
        seed=arguments.seed,
        ema=arguments.parameters == "ema",
    )
    print(text(placed.record))
    if arguments.output is None:
        return
    write(placed, arguments.workdir, arguments.output)
    print(f"Wrote {arguments.output}.")
    say_sampling(arguments.output, raw=arguments.parameters == "raw")


if __name__ == "__main__":
    end(main)
