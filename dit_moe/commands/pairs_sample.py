"""Draws pairs of images from a run on them: either of the other, or both."""

import argparse
from pathlib import Path

from dit_moe.config.command_line import command_parser, numbers, run_command, words
from dit_moe.config.run_flags import add_drawing_flags, lone_settings

EPILOG = """\
examples:
  python -m dit_moe.pairs sample --workdir runs/digits-edges --task image --given edges.npz \\
      --output out/
  python -m dit_moe.pairs sample --workdir runs/digits-edges --task condition --given digits.npz \\
      --output out/
  python -m dit_moe.pairs sample --workdir runs/digits-edges --task coarse --given sketches/ \\
      --strength 0.7 --classes 3 --output out/
  python -m dit_moe.pairs sample --workdir runs/digits-edges --task both --output out/ \\
      --inpaint first --known digits.npz --mask lower_half.png
  python -m dit_moe.pairs sample --workdir runs/digits-edges --others runs/digits-blur \
      --task image --given edges.npz,blurred.npz --weights 1,0.5 --output out/

tasks:
  image      the first image of a pair, of the second one, which is given
  condition  the second, such as edges, of the first, which is given
  both       both from noise
  coarse     both, and the second starts from a given one under noise (--strength)

writes first.npz, second.npz, grid.png with both side by side, and pairs.json into out/; with
--others, whose runs have a second image each, second_2.npz and so on too.
"""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_parser("python -m dit_moe.pairs sample", __doc__, EPILOG)
    add = parser.add_argument
    add("--workdir", required=True, type=Path, help="run of python -m dit_moe.pairs train")
    add("--output", required=True, type=Path, help="folder of the pairs")
    add("--task", required=True, help="image, condition, both or coarse")
    add(
        "--given",
        default="",
        metavar="NPZ|FOLDER,...",
        help="what is given, in turn: arr_0: uint8 images, arr_1: their labels; or a folder. Of "
        "second images, for each run",
    )
    add(
        "--others",
        default="",
        metavar="RUN,...",
        help="runs to combine with --workdir, from the same model of single images",
    )
    add("--weights", default="", metavar="1,1", help="of what the first image finds in each (1)")
    add(
        "--derive",
        action="store_true",
        help="--given holds first images, of which the second ones are made as in training",
    )
    add("--strength", type=float, help="coarse: noise of the second at first (default: 0.7)")
    add("--inpaint", metavar="first|second", help="of which image a part is known")
    add("--known", type=Path, metavar="NPZ|FOLDER", help="the images of that part, in turn")
    add("--mask", type=Path, metavar="PNG", help="white is painted anew, black is kept")
    add("--joint_scale", type=float, default=1.0, help="of what they find in each other (1)")
    add("--condition_scale", type=float, default=0.0, help="guidance by the other image (0: none)")
    add("--num_samples", type=int, default=64, help="pairs to draw (default: 64)")
    add("--classes", default="", metavar="0,1,2", help="in turn, by number or name")
    add("--seed", type=int, default=0, help="of all pairs together (default: 0)")
    add("--batch_size", type=int, default=64, help="pairs per pass (default: 64)")
    add_drawing_flags(parser)
    arguments = parser.parse_args(argv)
    return run_command(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Draws."""
    # After the arguments are parsed: JAX takes seconds to import.
    from dit_moe.pairs.draw import PairsSampler
    from dit_moe.pairs.pair_set import write_pairs
    from dit_moe.pairs.request import PairsRequest

    asked = PairsRequest(
        task=arguments.task,
        given=tuple(map(Path, words(arguments.given))),
        others=tuple(map(Path, words(arguments.others))),
        weights=tuple(numbers("weights", arguments.weights, float)),
        derive=arguments.derive,
        strength=arguments.strength,
        inpaint=arguments.inpaint,
        known=arguments.known,
        mask=arguments.mask,
        joint_scale=arguments.joint_scale,
        condition_scale=arguments.condition_scale,
    )
    sampler = PairsSampler(
        arguments.workdir,
        asked,
        batch_size=arguments.batch_size,
        num_samples=arguments.num_samples,
        classes=words(arguments.classes),
        seed=arguments.seed,
        **lone_settings(arguments, "for pairs"),
    )
    *written, last = write_pairs(sampler, arguments.output)
    print(f"Wrote {', '.join(map(str, written))} and {last}.")
