"""The pictures of a sweep."""

import io
import math
import statistics
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from dit_moe.report.chart import short
from dit_moe.sweep.law import FACTORS, levels
from dit_moe.sweep.prediction import Findings
from dit_moe.sweep.table import Entry, by_seed

_LEAST_RANGE = 4.0
"""The least ratio of an axis of sizes."""
_TITLES = {"active": "active parameters", "total": "parameters"}


def iso_flops(entries: Sequence[Entry], loss: str, findings: Findings | None) -> Figure:
    """Loss over active and over all parameters, a line for every number of training FLOPs.

    Points are means over seeds, with their standard deviation; crosses are what the law tells of
    the same runs, and empty points were held out from it.

    Args:
      entries: runs that are done and have the column.
      loss: a column of the table.
      findings: the law; None: no crosses.
    """
    figure = Figure(figsize=(10.0, 4.0), layout="constrained")
    axes = figure.subplots(1, len(_TITLES), sharey=True)
    groups = [*by_seed(entries).values()]
    flops_G = np.array([group[0].row["flops"] for group in groups], float)
    level_G = levels(flops_G)
    for axis, (factor, title) in zip(axes, _TITLES.items(), strict=True):
        for level in np.unique(level_G):
            rows = np.flatnonzero(level_G == level)
            label = f"{flops_G[rows].mean():.2g} FLOPs"
            _line(axis, [groups[i] for i in rows], factor, loss, label, findings)
        _sizes(axis, [group[0].row[FACTORS[factor]] for group in groups])
        axis.set_xlabel(title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(loss.replace("_", " "))
    axes[0].legend(fontsize=8)
    return figure


def _sizes(axis: Axes, x: Sequence[float]) -> None:
    """Makes the axis one of sizes, so wide that sizes that are nearly the same lie together."""
    middle = math.sqrt(min(x) * max(x))
    reach = max(1.1 * max(x) / middle, math.sqrt(_LEAST_RANGE))
    axis.set(xscale="log", xlim=(middle / reach, middle * reach))
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def png(figure: Figure) -> bytes:
    """The figure as a file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _line(
    axis: Axes,
    groups: Sequence[Sequence[Entry]],
    factor: str,
    loss: str,
    label: str,
    findings: Findings | None,
) -> None:
    """The groups of one number of FLOPs."""
    groups = sorted(groups, key=lambda group: group[0].row[FACTORS[factor]])
    x = [group[0].row[FACTORS[factor]] for group in groups]
    values = [[entry.row[loss] for entry in group] for group in groups]
    mean = [statistics.fmean(v) for v in values]
    deviation = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values]
    (line, *_) = axis.errorbar(x, mean, deviation, capsize=2, linewidth=1, label=label)
    colour = line.get_color()
    for at, value, group in zip(x, mean, groups, strict=True):
        face = "none" if group[0].run.heldout else colour
        axis.plot(at, value, "o", color=colour, markerfacecolor=face)
    if findings is not None:
        law = findings.fitted.law
        told = [float(law({n: g[0].row[FACTORS[n]] for n in law.exponent})) for g in groups]
        axis.plot(x, told, "x", color="black")
