"""Draws images from a trained run: a grid to look at and a set to measure."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dit_moe.config.command_line import command_parser, end, run_command, words
from dit_moe.config.run_flags import add_drawing_flags, add_memory_flag, drawing_settings

if TYPE_CHECKING:
    from dit_moe.sampling.known_images import SteeringRequest

EPILOG = """\
examples:
  python sample.py --workdir runs/digits --output out/
  python sample.py --workdir runs/digits --num_samples 64 --classes 0,1,2 \\
      --guidance_scale 1.5 --solver heun --steps 50 --seed 0 --output out/
  python sample.py --workdir runs/digits --steer inpaint --steer_images digits.npz \\
      --mask lower_half.png --output out/
  python sample.py --workdir runs/digits --steer_loss eval.asked_class:digits,weight=0.5,to=0.8 \
      --output out/

writes out/samples.npz (arr_0: uint8 images [N,H,W,C]; arr_1: labels), out/grid.png, and what they
are made of in out/samples.json. What is not given comes from the run's config. Image i is the
same whatever the batch size. A run that was interrupted goes on where it stopped when the same
command is given again, also with another --num_samples or --batch_size. Samples of a latent model
are decoded by the autoencoder that encoded its training data, or by that of --autoencoder.
"""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_parser("python sample.py", __doc__, EPILOG)
    add = parser.add_argument
    add("--workdir", required=True, type=Path, help="run folder, exported folder or hub name")
    add("--output", required=True, type=Path, help="folder for samples.npz and grid.png")
    add("--num_samples", type=int, default=64, help="images to draw (default: 64)")
    add(
        "--classes",
        default="",
        metavar="0,1,2",
        help="classes in turn, by number or by name as in cat,dog (default: the data's)",
    )
    add("--seed", type=int, default=0, help="of all images together (default: 0)")
    add("--batch_size", type=int, default=64, help="images per pass over all devices (default: 64)")
    add_memory_flag(parser)
    add("--bits", type=int, help="of a quantised model that is nested (default: all it has)")
    add(
        "--autoencoder",
        metavar="FOLDER|FILE|NAME",
        help="decodes the samples of a latent model; none: arr_0 holds float32 latents "
        "(default: the one that encoded the training data)",
    )
    add_drawing_flags(parser)
    _add_steering_flags(parser)
    arguments = parser.parse_args(argv)
    return run_command(lambda: run(arguments), resumes=True)


def run(arguments: argparse.Namespace) -> None:
    """Samples."""
    # After the arguments are parsed: JAX takes seconds to import.
    from dit_moe.sampling.run_sampler import RunSampler
    from dit_moe.sampling.sample_set import write_sample_set

    sampler = RunSampler(
        arguments.workdir,
        memory=arguments.memory,
        bits=arguments.bits,
        batch_size=arguments.batch_size,
        num_samples=arguments.num_samples,
        classes=words(arguments.classes),
        steering=_steering(arguments),
        losses=arguments.steer_loss,
        seed=arguments.seed,
        **drawing_settings(arguments),
        autoencoder=arguments.autoencoder,
    )
    npz, png = write_sample_set(sampler, arguments.output)
    print(f"Wrote {npz} and {png}.")


def _add_steering_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("steering, for models of pixels (docs/sampling.md)")
    add = group.add_argument
    add(
        "--steer",
        metavar="WHAT",
        help="inpaint, super_resolution, colorize or colorize_luma what --steer_images holds",
    )
    add(
        "--steer_images",
        type=Path,
        metavar="NPZ|FOLDER",
        help="arr_0: uint8 images, arr_1: their labels; or a folder of images. Sample i continues "
        "image i, in turn",
    )
    add("--mask", type=Path, metavar="PNG", help="inpaint: white is painted anew, black is kept")
    add("--factor", type=int, help="super_resolution: of the enlargement (default: 2)")
    add(
        "--steer_strength",
        type=float,
        metavar="0..1",
        help="1 holds exactly to what is known, 0 not at all (default: 1)",
    )
    add(
        "--steer_loss",
        action="append",
        default=[],
        metavar="MODULE:FUNCTION",
        help="a loss to lower: a function of JAX from images [N, H, W, C] and labels [N] to [N]; "
        "with ,weight=1,from=0,to=0.99 how much it counts and when, 0 is data; may be given more "
        "than once for a sum. The module is imported and run",
    )


def _steering(arguments: argparse.Namespace) -> "SteeringRequest | None":
    from dit_moe.config import ConfigError
    from dit_moe.sampling.known_images import SteeringRequest

    if arguments.steer is None:
        for name in ("steer_images", "mask", "factor", "steer_strength"):
            value = getattr(arguments, name)
            if value is not None:
                raise ConfigError(f"{name} is {str(value)!r} without steer; allowed: with --steer")
        return None
    return SteeringRequest(
        steer=arguments.steer,
        images=arguments.steer_images,
        mask=arguments.mask,
        factor=arguments.factor,
        strength=1.0 if arguments.steer_strength is None else arguments.steer_strength,
    )


if __name__ == "__main__":
    end(main)
