"""Measures how predictions change with what a network sees, which the cache teacache needs."""

import argparse

from dit_moe.config.command_line import command_parser, end, run_command
from dit_moe.config.run_flags import add_drawing_flags, lone_settings

EPILOG = """\
examples:
  python -m dit_moe.caching --workdir runs/xl --steps 50 --guidance_scale 1.5
  python sample.py --workdir runs/xl --steps 50 --guidance_scale 1.5 --output out/ \\
      --step_cache teacache:threshold=0.1

draws some images, computing everything, and writes the polynomial into the run folder as
teacache.json, in the place of an older one. It is of these parameters, solver and guidance; for
others calibrate anew. docs/caching.md says more.
"""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_parser("python -m dit_moe.caching", __doc__, EPILOG)
    add = parser.add_argument
    add("--workdir", required=True, help="run folder, exported folder or hub name")
    add("--images", type=int, default=32, help="drawn all at once (default: 32)")
    add("--seed", type=int, default=0, help="of the images (default: 0)")
    add_drawing_flags(parser)
    arguments = parser.parse_args(argv)
    return run_command(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Calibrates."""
    # After the arguments are parsed: JAX takes seconds to import.
    from dit_moe.sampling.calibration import calibrate

    path, found = calibrate(
        arguments.workdir,
        images=arguments.images,
        seed=arguments.seed,
        **lone_settings(arguments, "for a calibration"),
    )
    print(f"Wrote {path}; the polynomial explains {found.explained:.0%} of the variance.")


if __name__ == "__main__":
    end(main)
