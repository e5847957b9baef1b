"""Tells what the experts of a trained model do, in numbers, pictures and words."""

import argparse
from pathlib import Path

from dit_moe.commands.shown import add_shown_flags
from dit_moe.config.command_line import command_parser, end, run_command, words
from dit_moe.config.run_flags import add_parameters_flag

EPILOG = """\
examples:
  python -m dit_moe.analysis --workdir runs/digits --output out/experts
  python -m dit_moe.analysis --workdir runs/xl --output out/experts --classes 207,360,387,974 \\
      --num_images 400 --guidance_scale 1.5
  python -m dit_moe.analysis --workdir runs/published --output out/experts --inputs sampling

The network is shown the run's training data, noised to every part of the time range, and the
states that images pass while they are sampled (Euler; DDIM under DDPM). OUTPUT receives analysis.md
(the findings), pictures, analysis.json (all numbers) and counts.npz. docs/analysis.md defines the
numbers.
"""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_parser("python -m dit_moe.analysis", __doc__, EPILOG)
    add = parser.add_argument
    add("--workdir", required=True, help="run folder, exported folder or hub name")
    add("--output", required=True, type=Path, help="folder for the results; must be new")
    add(
        "--inputs",
        choices=("both", "training", "sampling"),
        default="both",
        help="what the network is shown (default: both)",
    )
    add_shown_flags(parser, "images of each kind")
    add_parameters_flag(parser)
    arguments = parser.parse_args(argv)
    return run_command(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Analyses."""
    # After the arguments are parsed: JAX takes seconds to import.
    from dit_moe.analysis.analyse import analyse, write
    from dit_moe.storage.files import new_folder

    with new_folder(arguments.output) as folder:
        found = analyse(
            arguments.workdir,
            arguments.batch_size,
            inputs=arguments.inputs,
            data=[part for part in arguments.data.split(",") if part],
            num_images=arguments.num_images,
            classes=words(arguments.classes),
            time_bins=arguments.time_bins,
            steps=arguments.steps,
            guidance_scale=arguments.guidance_scale,
            seed=arguments.seed,
            ema=arguments.parameters == "ema",
        )
        write(found, folder)
    for f in found.analysis.findings:
        print(f"[{f.inputs}] {f.claim} {f.verdict.capitalize()}. {f.reason}")
    print(f"Wrote {arguments.output}.")


if __name__ == "__main__":
    end(main)
