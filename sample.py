"""Draws images from a trained run: a grid to look at and a set to measure."""

import argparse
import sys
from pathlib import Path

from dit_moe.command_line import command_parser

EPILOG = """\
examples:
  python sample.py --workdir runs/digits --output out/
  python sample.py --workdir runs/digits --num_samples 64 --classes 0,1,2 \\
      --guidance_scale 1.5 --solver heun --steps 50 --seed 0 --output out/

writes out/samples.npz (arr_0: uint8 images [N,H,W,C]; arr_1: labels), out/grid.png, and what they
are made of in out/samples.json. What is not given comes from the run's config. Image i is the
same whatever the batch size. A run that was interrupted goes on where it stopped when the same
command is given again. Samples of a latent model are decoded by the autoencoder that encoded its
training data, or by that of --autoencoder.
"""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_parser("sample.py", __doc__, EPILOG)
    add = parser.add_argument
    add("--workdir", required=True, type=Path, help="run folder, exported folder or hub name")
    add("--output", required=True, type=Path, help="folder for samples.npz and grid.png")
    add("--num_samples", type=int, default=64, help="images to draw (default: 64)")
    add("--classes", default="", metavar="0,1,2", help="classes in turn (default: all)")
    add("--guidance_scale", type=float, help="classifier-free guidance; 1 is none")
    add(
        "--guidance_channels",
        choices=("all", "first_three"),
        default="all",
        help="channels that are guided; first_three is DiT's published habit (default: all)",
    )
    add("--solver", help="euler or heun for rectified flow; ancestral or ddim for DDPM")
    add("--steps", type=int, help="solver steps")
    add("--seed", type=int, default=0, help="of all images together (default: 0)")
    add("--batch_size", type=int, default=64, help="images per pass over all devices (default: 64)")
    add(
        "--parameters",
        choices=("ema", "raw"),
        default="ema",
        help="the parameters' moving average, or the parameters themselves (default: ema)",
    )
    add(
        "--autoencoder",
        metavar="FOLDER|FILE|NAME",
        help="decodes the samples of a latent model; none: arr_0 holds float32 latents "
        "(default: the one that encoded the training data)",
    )
    arguments = parser.parse_args(argv)

    try:
        return run(arguments)
    except KeyboardInterrupt:
        print("\nStopped. Give the same command again to go on.", file=sys.stderr)
        return 130


def run(arguments: argparse.Namespace) -> int:
    """Samples; returns the exit code."""
    # After the arguments are parsed: JAX takes seconds to import.
    from dit_moe.config import ConfigError
    from dit_moe.sample_set import RunSampler, write_sample_set

    try:
        sampler = RunSampler(
            arguments.workdir,
            ema=arguments.parameters == "ema",
            batch_size=arguments.batch_size,
            num_samples=arguments.num_samples,
            classes=_classes(arguments.classes),
            guidance_scale=arguments.guidance_scale,
            guidance_channels=arguments.guidance_channels,
            solver=arguments.solver,
            steps=arguments.steps,
            seed=arguments.seed,
            autoencoder=arguments.autoencoder,
        )
        npz, png = write_sample_set(sampler, arguments.output)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"Wrote {npz} and {png}.")
    return 0


def _classes(text: str) -> list[int]:
    from dit_moe.config import ConfigError

    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(
            f"classes is {text!r}; allowed: numbers with commas, such as 0,1,2"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
