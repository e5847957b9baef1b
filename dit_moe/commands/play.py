"""Serves a page on which a run is played with: classes, seeds, guidance, a brush, its experts."""

import argparse

from dit_moe.config.command_line import command_parser, end, run_command
from dit_moe.config.run_flags import add_checkpoint_flag, add_parameters_flag

EPILOG = """\
examples:
  python -m dit_moe.play --workdir runs/digits
  python -m dit_moe.play --workdir runs/digits --compare runs/digits-dit --port 0

Open the address that is told in a browser on this machine; Ctrl-C ends it. Two runs are asked the
same, with the same seeds. Needs the extra: pip install 'dit-moe[play]'. docs/playing.md shows it.
"""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_parser("python -m dit_moe.play", __doc__, EPILOG)
    add = parser.add_argument
    add("--workdir", required=True, help="run folder, exported folder or hub name")
    add("--compare", metavar="RUN", help="another one, to be shown beside it")
    add_parameters_flag(parser)
    add_checkpoint_flag(parser)
    add(
        "--autoencoder",
        metavar="FOLDER|FILE|NAME",
        help="decodes the samples of latent models (default: the one that encoded the training "
        "data)",
    )
    add("--batch_size", type=int, default=16, help="most images of one pass (default: 16)")
    add("--port", type=int, default=7860, help="0 takes any that is free (default: 7860)")
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen at; any but the default lets others in, without a password "
        "(default: 127.0.0.1)",
    )
    arguments = parser.parse_args(argv)
    return run_command(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Serves the page until Ctrl-C."""
    # After the arguments are parsed: JAX takes seconds to import.
    from dit_moe.play.drawer import Drawer
    from dit_moe.play.player import Player
    from dit_moe.play.serve import linger, need_gradio, served

    need_gradio()
    drawers = [
        Drawer(
            workdir,
            ema=arguments.parameters == "ema",
            batch_size=arguments.batch_size,
            autoencoder=arguments.autoencoder,
            checkpoint=arguments.checkpoint,
        )
        for workdir in (arguments.workdir, arguments.compare)
        if workdir is not None
    ]
    with served(Player(drawers), arguments.host, arguments.port) as url:
        print(f"The page: {url} (Ctrl-C ends it)", flush=True)
        linger()


if __name__ == "__main__":
    end(main)
