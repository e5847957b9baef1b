"""The flags by which a run on texts writes."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dit_moe.config.run_flags import add_checkpoint_flag, add_parameters_flag

if TYPE_CHECKING:
    from dit_moe.text.writer import TextWriter


def add_writer_flags(parser: argparse.ArgumentParser) -> None:
    """Adds them."""
    add = parser.add_argument
    add("--workdir", required=True, type=Path, help="run of python -m dit_moe.text train")
    add("--steps", type=int, default=20, help="of denoising (default: 20)")
    add(
        "--candidates",
        type=int,
        default=1,
        help="texts drawn for each source, of which the one that agrees most with the others is "
        "taken, by BLEU (minimum Bayes risk; default: 1)",
    )
    add("--clamp", action="store_true", help="replace every estimate by the nearest embeddings")
    add("--seed", type=int, default=0, help="of all texts together (default: 0)")
    add("--batch_size", type=int, default=256, help="sources per pass (default: 256)")
    add_parameters_flag(parser)
    add_checkpoint_flag(parser)


def described(arguments: argparse.Namespace, writer: "TextWriter") -> dict[str, object]:
    """What texts depend on beside their sources, ready for JSON."""
    plain = ("parameters", "steps", "clamp", "seed", "candidates")
    return {
        "workdir": str(arguments.workdir),
        "step": writer.run.step,
        **{name: getattr(arguments, name) for name in plain},
    }


def open_writer(arguments: argparse.Namespace) -> "TextWriter":
    """The run, made ready to write.

    Raises:
      ConfigError: it cannot be used.
    """
    from dit_moe.text.writer import TextWriter

    return TextWriter(
        arguments.workdir,
        ema=arguments.parameters == "ema",
        checkpoint=arguments.checkpoint,
        steps=arguments.steps,
        clamp=arguments.clamp,
        candidates=arguments.candidates,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
    )
