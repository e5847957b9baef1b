"""Judges every checkpoint of a run as it appears, beside the process that trains it."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dit_moe.config import ConfigError
from dit_moe.config.files import load_json
from dit_moe.storage.records import read_json, shown

from . import sweep
from .metric_table import METRICS
from .output import as_json, write
from .run_samples import checkpoint_digests

_PAUSE = 10.0  # seconds
_OF_ONE = ("step", "weights", "start_share")
"""What tells samples of one checkpoint from those of another."""

JudgeStep = Callable[[int], sweep.Result]
"""From a step to the result of `evaluate`, with the samples' description in it."""


def follow(workdir: Path, judge: JudgeStep, output: Path, judged_by: Mapping[str, Any]) -> str:
    """Judges the checkpoints that are there and those to come, until the run's last step.

    Args:
        workdir: the run folder.
        judge: judges one checkpoint.
        output: JSON of all results by step, written anew after each; those in it are not judged
            again. A picture beside it shows the curves.
        judged_by: what all results share, ready for JSON.

    Returns:
        The table.

    Raises:
        ConfigError: `output` holds something else, or the run is no longer the one in it.
        OSError: `output` cannot be written.
    """
    table = _Table(output, judged_by)
    for step, digest in _to_judge(workdir, table):
        try:
            result = judge(step)
        except ConfigError:
            if step in checkpoint_digests(workdir):
                raise
            print(f"Step {step:,} was removed by the run before it could be judged.", flush=True)
            continue
        table.add(result, digest)
        print(f"Step {step:,} is judged: {table.told(step)}", flush=True)
    picture = output.with_suffix(".png")
    sweep.plot(table.results, picture, "step", table.steps)
    return f"{table.text()}\n\nThe plot: {picture}"


def wait() -> None:
    """Until it is worth to look for checkpoints again."""
    time.sleep(_PAUSE)


def _to_judge(workdir: Path, table: "_Table") -> Iterator[tuple[int, str]]:
    """Steps with what their checkpoints hold, as they appear; ends when the last one is judged."""
    waiting = None
    while True:
        digests = checkpoint_digests(workdir)
        table.check(digests)
        new = [step for step in sorted(digests) if step not in table.steps]
        for step in new:
            yield step, digests[step]
        last = load_json(workdir / "config.json").train.steps
        if last in table.steps:
            return
        if not new:
            newest = max(digests, default=0)
            if newest != waiting:
                print(
                    f"Waits for checkpoints of {workdir} after step {newest:,}, to its last, "
                    f"{last:,}. Ctrl-C stops this alone; the same command goes on.",
                    flush=True,
                )
            waiting = newest
            wait()


class _Table:
    """The results by step, in a file that is always whole."""

    def __init__(self, path: Path, judged_by: Mapping[str, Any]):
        self._path = path
        judged_by = json.loads(json.dumps(judged_by))  # as it is read
        self._content: dict[str, Any] = {"by_step": [], "checkpoints": {}, "judged_by": judged_by}
        if not path.exists():
            return
        known = read_json(path)
        if not _is_table(known):
            raise ConfigError(
                f"--output is {path}, which holds something else than results by step; allowed: "
                "another file."
            )
        names = {**known["judged_by"], **judged_by}
        other = [n for n in names if known["judged_by"].get(n) != judged_by.get(n)]
        if other:
            raise ConfigError(
                f"--output is {path}, whose results were judged otherwise: they differ in "
                f"{', '.join(other)}; allowed: another file, or the same settings."
            )
        self._content = known

    @property
    def results(self) -> list[sweep.Result]:
        """In the order of the steps."""
        return self._content["by_step"]

    @property
    def steps(self) -> list[int]:
        """Those that are judged."""
        return [result["samples"]["drawn"]["step"] for result in self.results]

    def check(self, digests: Mapping[int, str]) -> None:
        """Raises a ConfigError if a checkpoint is no longer the one that was judged."""
        for step, digest in digests.items():
            if self._content["checkpoints"].get(str(step), digest) != digest:
                raise ConfigError(
                    f"--output is {self._path}, whose result of step {step:,} is of other weights "
                    "than the checkpoint that is there now: the run was trained anew; allowed: "
                    "another file."
                )

    def add(self, result: sweep.Result, digest: str) -> None:
        """Takes a result in and writes the file."""
        result = json.loads(json.dumps(result))  # as those that were read
        if self.results:
            old, new = (r["samples"]["drawn"] for r in (self.results[0], result))
            other = [n for n in new if n not in _OF_ONE and old.get(n) != new[n]]
            if other:
                raise ConfigError(
                    f"--output is {self._path}, whose samples were drawn otherwise: {other[0]} was "
                    f"{shown(old.get(other[0]), 80)}, is {shown(new[other[0]], 80)}; allowed: "
                    "another file."
                )
        step = result["samples"]["drawn"]["step"]
        results = sorted([*self.results, result], key=lambda r: r["samples"]["drawn"]["step"])
        checkpoints = {**self._content["checkpoints"], str(step): digest}
        self._content |= {"by_step": results, "checkpoints": checkpoints}
        write(self._path, as_json(self._content))

    def told(self, step: int) -> str:
        """The numbers of a step in a line."""
        place = self.steps.index(step)
        return ", ".join(
            f"{title} {values[place]:.5g}" for title, values in sweep.rows(self.results)
        )

    def text(self) -> str:
        """A line for every step, a column for every number; then which step is the best."""
        rows = sweep.rows(self.results)
        lines = [["step", *(title for title, _ in rows)]]
        for place, step in enumerate(self.steps):
            lines.append([f"{step:,}", *(f"{values[place]:.5g}" for _, values in rows)])
        text = sweep.aligned(lines)
        first = next(iter(self.results[0]["metrics"]))
        if order := METRICS[first].best:
            title, values = rows[0]
            best = values.index((min if order == "lowest" else max)(values))
            text += f"\n\nThe {order} {title} is that of step {self.steps[best]:,}."
        return text


def _is_table(known: Any) -> bool:
    """Whether it is what a `_Table` writes."""
    try:
        steps = [result["samples"]["drawn"]["step"] for result in known["by_step"]]
        parts = known["checkpoints"], known["judged_by"]
    except (KeyError, TypeError):
        return False
    return all(type(step) is int for step in steps) and all(isinstance(p, dict) for p in parts)
