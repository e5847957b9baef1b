"""Flags of commands that look at which experts a run chooses: what its network is shown."""

import argparse


def add_shown_flags(parser: argparse.ArgumentParser, num_images: str) -> None:
    """Adds what the images are, how many, at which times, and the seed.

    Args:
      parser: of the command.
      num_images: what is said of their number.
    """
    add = parser.add_argument
    add(
        "--data",
        default="",
        metavar="FOLDER[,FOLDER]",
        help="prepared training data, if they are not where the run's config says",
    )
    add("--num_images", type=int, default=256, help=f"{num_images} (default: 256)")
    add("--classes", default="", metavar="0,1,2", help="or names (default: 16 or all)")
    add("--time_bins", type=int, default=10, help="parts of the time range (default: 10)")
    add("--steps", type=int, default=20, help="of sampling (default: 20)")
    add("--guidance_scale", type=float, help="of sampling (default: the run's own)")
    add("--batch_size", type=int, default=64, help="images per pass over all devices (default: 64)")
    add("--seed", type=int, default=0, help="of everything random (default: 0)")
