"""Turns pictures into a data set for training, on many machines with Apache Beam.

Takes the flags of python -m dit_moe.data.prepare and Beam's own, such as --runner, and makes the
same files. Input and output must be folders that all machines reach by the same paths.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dit_moe.commands.prepare import build_parser, run
from dit_moe.config.command_line import end

if TYPE_CHECKING:
    from dit_moe.data.prepare.job import Job


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = build_parser("dit_moe.data.prepare.beam", __doc__)
    arguments, beam_flags = parser.parse_known_args(argv)

    def make(job: "Job", missing: Sequence[int]) -> None:
        # After the arguments are parsed: Beam takes seconds to import.
        from dit_moe.data.prepare.beam_pipeline import make_shards

        make_shards(job, missing, beam_flags)

    return run(arguments, make)


if __name__ == "__main__":
    end(main)
