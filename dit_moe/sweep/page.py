"""The page about a sweep: what its runs are, what came of them, and their law."""

import math
from collections.abc import Sequence
from pathlib import Path

from dit_moe.report.chart import Chart, Line, draw, drawable
from dit_moe.report.metrics import read_metrics
from dit_moe.report.pictures import as_uri
from dit_moe.report.template import template
from dit_moe.sweep.intervals import COVERAGE
from dit_moe.sweep.pictures import iso_flops, png
from dit_moe.sweep.prediction import Findings
from dit_moe.sweep.table import Entry, columns

MAX_LINES = 40
"""Curves are drawn of as many runs at most."""


def render(
    entries: Sequence[Entry], title: str, runs: Path, loss: str, findings: Findings | None
) -> str:
    """The page.

    Args:
      entries: of all runs.
      title: its heading.
      runs: the folder of the run folders, for curves.
      loss: the column that the pictures show.
      findings: the law; None: there is none on the page.

    Raises:
      ConfigError: the log of a run is damaged.
    """
    shown = [e for e in entries if e.state == "done" and e.row.get(loss) is not None]
    names = columns(entries)
    return template("dit_moe.sweep").render(
        title=title,
        count={s: sum(e.state == s for e in entries) for s in ("done", "failed", "open")},
        failures=[(e.run.name, e.failure) for e in entries if e.state == "failed"],
        loss=loss,
        picture=as_uri(png(iso_flops(shown, loss, findings))) if shown else None,
        charts=_charts(entries, runs),
        most_curves=MAX_LINES if len(entries) > MAX_LINES else None,
        findings=findings,
        coverage=f"{COVERAGE:.0%}",
        names=names,
        rows=[(e.run.name, e.state, [_text(e.row.get(name)) for name in names]) for e in entries],
    )


def _charts(entries: Sequence[Entry], runs: Path) -> list[tuple[str, Chart]]:
    """The losses of all runs over their steps."""
    charts = []
    for name in ("validation/loss", "loss"):
        lines = []
        for entry in entries[:MAX_LINES]:
            metrics = read_metrics(runs / entry.run.name / "metrics.csv")
            if metrics is None or name not in metrics.cells:
                continue
            steps, values = metrics.curve(name)
            if any(map(drawable, values)):
                lines.append(Line(entry.run.name, steps, values))
        if lines:
            charts.append((name, draw(name, lines)))
    return charts


def _text(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"
