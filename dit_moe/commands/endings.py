"""How commands that write a model end: what they say, and their exit code."""

import shlex
from collections.abc import Callable
from os import PathLike
from pathlib import Path

from dit_moe.config.command_line import say_error
from dit_moe.config.verbs import spoken


def say_sampling(folder: Path, *, raw: bool = False) -> None:
    """Prints the command that draws from the model; raw: it has no moving average."""
    which = " --parameters raw" if raw else ""
    workdir = shlex.quote(str(folder))
    print(spoken(f"Next: python sample.py --workdir {workdir}{which} --output out/"))


def train_to_the_end(train: Callable[[], int | None], workdir: PathLike[str], then: str) -> int:
    """Trains, says what came of it, and returns the exit code.

    Args:
      train: returns the signal that stopped it after a save, or None, as `training.loop.train`.
      workdir: of the run.
      then: what may be called next; {workdir} stands for the folder.
    """
    # After the arguments are parsed: JAX takes seconds to import.
    from dit_moe.devices import hosts
    from dit_moe.runs.checkpoints import TrainingError

    try:
        stopped_by = train()
    except TrainingError as error:
        say_error(f"error: {error}")
        return 1
    if stopped_by is not None:
        hosts.say(f"Saved. Run the same command to go on, in {workdir}.")
        return 128 + stopped_by
    line = then.format(workdir=shlex.quote(str(workdir)))
    hosts.say(spoken(f"Done. Next: {line}"))
    return 0
