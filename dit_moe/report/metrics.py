"""What metrics.csv holds, as a table and as curves."""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dit_moe.config import ConfigError

_INDEX = re.compile(r"/(layer|expert)(\d{1,9})$")
_TIME = re.compile(r"^(validation/)?(loss_t)(\d+)$")
_HELDOUT = "validation/loss"
_SELDOM = ("validation/", "judged/")
_MOST_STEPS = 1e18


@dataclass(frozen=True)
class Metrics:
    """Columns of metrics.csv, cells as they are written there."""

    cells: Mapping[str, Sequence[str]]
    """By name, "step" first."""

    @property
    def steps(self) -> list[float]:
        """The step of every row."""
        return [float(cell) for cell in self.cells["step"]]

    def values(self, name: str) -> list[float]:
        """Numbers of a column; NaN for an empty cell."""
        return [float(cell) if cell else math.nan for cell in self.cells[name]]

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and numbers of a column. An empty cell is a gap, but what is measured now and then,
        on held-out data or on samples, has cells in some rows alone, and no gaps."""
        points = zip(self.steps, self.values(name), strict=True)
        seldom = name.startswith(_SELDOM)
        kept = [(x, y) for x, y in points if not (seldom and math.isnan(y))]
        return [x for x, _ in kept], [y for _, y in kept]


@dataclass(frozen=True)
class Curves:
    """Metrics that belong into one chart."""

    title: str
    names: dict[str, str]
    """Their names by what tells them apart."""


def read_metrics(path: Path) -> Metrics | None:
    """Reads metrics.csv; None where there is none, or no row in it.

    Raises:
      ConfigError: it is no table of numbers.
    """
    if not path.is_file():
        return None
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [*csv.reader(file)]
        if not lines:
            return None
        header, *rows = lines
        if header[:1] != ["step"]:
            raise ValueError("its first line does not begin with step")
        rows = [row for row in rows if len(row) == len(header)]  # the last may be half-written
        if not rows:
            return None
        metrics = Metrics({name: [row[i] for row in rows] for i, name in enumerate(header)})
        for name in header:
            metrics.values(name)
        if not all(0 <= step < _MOST_STEPS for step in metrics.steps):
            raise ValueError("a step is no count")
    except (ValueError, csv.Error) as error:
        raise ConfigError(f"{path} is no table of numbers by step: {error}") from None
    return metrics


def group(names: Sequence[str]) -> list[Curves]:
    """Which metrics share a chart: the layers of one name, the experts of one layer, the losses by
    quarter of the time range, the loss of training and that on held-out data."""
    charts: dict[str, Curves] = {}
    for name in names:
        match = _INDEX.search(name) or _TIME.match(name)
        if name in ("loss", _HELDOUT) and _HELDOUT in names:
            title, label = "loss", "training" if name == "loss" else "validation"
        elif match is None:
            title, label = name, ""
        elif match.re is _TIME:
            title, label = f"{match[1] or ''}loss by quarter of the time range", name
        else:
            title, label = name[: match.start()], f"{match[1]} {int(match[2])}"
        charts.setdefault(title, Curves(title, {})).names[label] = name
    return list(charts.values())
