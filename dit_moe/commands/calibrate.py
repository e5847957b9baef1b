"""Measures how predictions change with what a network sees, which the cache teacache needs."""

import argparse

from dit_moe.config.command_line import (
    add_checkpoint_flag,
    add_guidance_flags,
    add_parameters_flag,
    add_solver_flags,
    command_parser,
    end,
    guidance_settings,
    run_command,
    solver_settings,
)

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
    add_parameters_flag(parser)
    add_checkpoint_flag(parser)
    add_solver_flags(parser)
    add_guidance_flags(parser)
    arguments = parser.parse_args(argv)
    return run_command(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Calibrates."""
    # After the arguments are parsed: JAX takes seconds to import.
    from dit_moe.config import ConfigError
    from dit_moe.sampling.calibration import calibrate

    if arguments.step_cache is not None:
        raise ConfigError(
            f"step_cache is {arguments.step_cache!r}; allowed: none, to calibrate one"
        )
    if arguments.guide is not None:
        raise ConfigError(f"guide is {arguments.guide!r}; allowed: none, as for teacache")
    path, found = calibrate(
        arguments.workdir,
        ema=arguments.parameters == "ema",
        checkpoint=arguments.checkpoint,
        images=arguments.images,
        seed=arguments.seed,
        guidance=guidance_settings(arguments)["guidance"],
        integration=solver_settings(arguments)["integration"],
    )
    print(f"Wrote {path}; the polynomial explains {found.explained:.0%} of the variance.")


if __name__ == "__main__":
    end(main)
