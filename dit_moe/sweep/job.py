"""Training as the task of a queue."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from dit_moe.config import ConfigError
from dit_moe.runs.checkpoints import TrainingError
from dit_moe.sweep.measure import Judge, Row, facts, from_log
from dit_moe.sweep.record import Sweep
from dit_moe.training.loop import train
from dit_moe.training.session import build_parts

RUNS = "runs"
"""The folder of run folders in that of the sweep."""


class Trainer:
    """Trains a run of a sweep by its name, in RUNS/NAME, from its newest checkpoint.

    Args:
      sweep: its runs.
      folder: of the sweep.
      judge: what is measured beside the log; None: nothing.
      say: is told which run begins.
    """

    def __init__(self, sweep: Sweep, folder: Path, judge: Judge | None, say: Callable[[str], None]):
        self._runs = {run.name: run for run in sweep.runs}
        self._folder = folder
        self._judge = judge
        self._say = say
        self.stopped_by: int | None = None
        """The signal that stopped it, after a save."""

    def __call__(self, name: str) -> Mapping[str, Any] | None:
        """The run's row of the table; None where a signal stopped it.

        Raises:
          ConfigError: it cannot be trained or judged.
        """
        run, workdir = self._runs[name], self._folder / RUNS / name
        self._say(f"{name}: {workdir}")
        jax.clear_caches()  # every run has programs of its own
        try:
            self.stopped_by = train(run.config, workdir)
        except TrainingError as error:
            raise ConfigError(str(error)) from error
        if self.stopped_by is not None:
            return None
        row = facts(run.config) | from_log(run.config, workdir)
        if self._judge is not None:
            row |= _finite(self._judge(workdir, run.config))
        return row


def _finite(row: Row) -> Row:
    return {name: v if v is not None and math.isfinite(v) else None for name, v in row.items()}


def check_runs(sweep: Sweep) -> None:
    """Checks configs against the devices of this machine and the data, before any run begins.

    Raises:
      ConfigError: one does not fit; the message names the run.
    """
    for run in sweep.runs:
        try:
            build_parts(run.config)
        except ConfigError as error:
            raise ConfigError(f"run {run.name}: {error}") from error
