"""The results of a sweep: a table of all runs, and what its groups of seeds have in common."""

import csv
import dataclasses
import io
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dit_moe.config import ConfigError
from dit_moe.storage.files import atomic
from dit_moe.sweep.measure import Row, facts
from dit_moe.sweep.queue import Queue
from dit_moe.sweep.record import Run, Sweep

SEED = "seed"
"""The axis over which means are taken, by its name."""
_IDENTITY = ("seed", "steps", "images", "parameters_total")
SUMMARY = ("validation_loss", "loss", "frechet", "recognised")
"""The columns of which means and differences are told."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A run and what is known of it."""

    run: Run
    state: str
    """"done", "failed" or "open"."""
    row: dict[str, Any]
    """Numbers by column; what follows from the config alone until the run is done."""
    failure: str = ""


def collect(sweep: Sweep, queue: Queue) -> list[Entry]:
    """What the queue knows of every run.

    Raises:
      ConfigError: an outcome is damaged, or of another run.
    """
    entries = []
    for run in sweep.runs:
        outcome, known = queue.outcome(run.name), facts(run.config)
        if outcome is None:
            entries.append(Entry(run, "open", known))
        elif outcome.result is None:
            entries.append(Entry(run, "failed", known, outcome.failure or ""))
        else:
            _check_identity(run, known, outcome.result)
            entries.append(Entry(run, "done", known | outcome.result))
    return entries


def _check_identity(run: Run, known: Row, result: Row) -> None:
    for name in _IDENTITY:
        if result.get(name) != known[name]:
            raise ConfigError(
                f"what came of run {run.name} is of one whose {name} is {result.get(name)}, and by "
                f"the grid it is {known[name]}; allowed: the grid of before, or another --output"
            )


def columns(entries: Sequence[Entry]) -> list[str]:
    """The names of all numbers, in order."""
    return [*dict.fromkeys(name for entry in entries for name in entry.row)]


def write_table(entries: Sequence[Entry], folder: Path) -> None:
    """Writes results.csv and results.json, a row for every run."""
    names = columns(entries)
    axes = [*dict.fromkeys(axis for entry in entries for axis in entry.run.choices)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = [f"choice_{axis}" for axis in axes]
    writer.writerow(["run", "state", "heldout", *head, *names, "failure"])
    for entry in entries:
        choices = [entry.run.choices.get(axis, "") for axis in axes]
        numbers = [_cell(entry.row.get(name)) for name in names]
        held = int(entry.run.heldout)
        writer.writerow([entry.run.name, entry.state, held, *choices, *numbers, entry.failure])
    with atomic(folder / "results.csv") as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    values = [
        {
            "run": entry.run.name,
            "state": entry.state,
            "heldout": entry.run.heldout,
            "choices": entry.run.choices,
            "numbers": entry.row,
            "failure": entry.failure,
        }
        for entry in entries
    ]
    with atomic(folder / "results.json") as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n")


def by_seed(entries: Sequence[Entry]) -> dict[tuple[str, ...], list[Entry]]:
    """Runs that differ in their seed alone, by their place on the other axes."""
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        key = tuple(text for axis, text in entry.run.choices.items() if axis != SEED)
        groups.setdefault(key, []).append(entry)
    return groups


def summary(entries: Sequence[Entry]) -> str:
    """Mean and standard deviation over the seeds that are done, as a Markdown table."""
    done = [entry for entry in entries if entry.state == "done"]
    if not done:
        return ""
    names = [name for name in SUMMARY if any(e.row.get(name) is not None for e in done)]
    axes = [axis for axis in done[0].run.choices if axis != SEED]
    head = [*axes, "active parameters", "parameters", "sparsity", "GFLOPs", "runs", *names]
    lines = [head, ["---"] * len(head)]
    for key, group in by_seed(done).items():
        first = group[0].row
        counts = [f"{first['parameters_active']:,}", f"{first['parameters_total']:,}"]
        flops = f"{first['flops'] / 1e9:,.4g}"
        means = [spread(entry.row.get(name) for entry in group) for name in names]
        sparse = f"{first['sparsity']:.3f}"
        lines.append([*key, *counts, sparse, flops, str(len(group)), *means])
    return markdown(lines)


def plan(entries: Sequence[Entry]) -> str:
    """What each run will take, as a Markdown table, and all together."""
    head = ["run", "parameters", "active", "sparsity", "steps", "tokens per parameter", "GFLOPs"]
    lines = [head, ["---"] * len(head)]
    for entry in entries:
        row = entry.row
        counts = [f"{row[name]:,}" for name in ("parameters_total", "parameters_active")]
        lines.append(
            [
                f"{entry.run.name}{' (held out)' if entry.run.heldout else ''}",
                *counts,
                f"{row['sparsity']:.3f}",
                f"{row['steps']:,}",
                f"{row['tokens_per_parameter']:,.3g}",
                f"{row['flops'] / 1e9:,.4g}",
            ]
        )
    total = sum(entry.row["flops"] for entry in entries) / 1e9
    return f"{markdown(lines)}\n{len(entries)} runs, {total:,.4g} GFLOPs."


def spread(values: Iterable[float | None]) -> str:
    """Mean and, of more than one, standard deviation."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = f"{statistics.fmean(known):.4f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.4f}"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table of texts; the first two lines are its head."""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    return "" if value is None else repr(value)
