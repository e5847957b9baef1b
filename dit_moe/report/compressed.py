"""What the page says of a compressed model: what was done, what it saved, and what it changed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dit_moe.config import ConfigError
from dit_moe.report.chart import Chart, Line, draw
from dit_moe.report.pictures import data_uri
from dit_moe.surgery.compress.compared import SAMPLES, Compared, compared
from dit_moe.surgery.compress.record import Compressed, read_compressed


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    source: str
    rows: tuple[tuple[str, ...], ...]
    """Of the original, then of each step: what it was, bytes, share of the original's, parameters,
    active ones, mean bits."""
    missing: str
    """Why there is no comparison, or nothing."""
    charts: tuple[tuple[str, Chart], ...] = ()
    layers: tuple[tuple[str, str, str], ...] = ()
    """Number of each MoE layer, and the mean and largest share of changed choices."""
    picture: tuple[str, str] | None = None
    """Caption and data URI."""


def section(workdir: Path) -> Section | None:
    """The section of a folder; None where it was not compressed.

    The comparison is made into `workdir`/compared if it is not there yet.

    Raises:
      ConfigError: a file of it cannot be read.
    """
    record = read_compressed(workdir)
    if record is None:
        return None
    rows = _rows(record)
    try:
        found = compared(workdir, workdir / "compared")
    except (ConfigError, OSError) as error:
        return Section(record.source, rows, f"It is not compared with the original: {error}.")
    told = found.compared
    caption = f"{SAMPLES} samples of the same seeds and classes"
    return Section(
        record.source,
        rows,
        "",
        _charts(told),
        tuple(_layers(told)),
        (caption, data_uri(found.picture)),
    )


def _rows(record: Compressed) -> tuple[tuple[str, ...], ...]:
    found = [("the original", record.before, "32")]
    bits = "32"
    for step in record.steps:
        told = step.told.get("bits")
        bits = bits if told is None else f"{told:.3g}"
        found.append((step.step, step.after, bits))
    return tuple(
        (
            name,
            f"{size.bytes:,}",
            f"{size.bytes / record.before.bytes:.1%}",
            f"{size.parameters:,}",
            f"{size.active:,.0f}",
            bits,
        )
        for name, size, bits in found
    )


def _charts(told: Compared) -> tuple[tuple[str, Chart], ...]:
    """By time, from data (0) to noise (1)."""
    title = "error of the prediction by time"
    charts = [(title, draw(title, [Line("", told.places, told.error)]))]
    lines = [
        Line(f"layer {number}", told.places, shares)
        for number, shares in enumerate(told.changed)
        if shares is not None
    ]
    if lines:
        title = "share of changed choices by time"
        charts.append((title, draw(title, lines, linear=True)))
    return tuple(charts)


def _layers(told: Compared) -> Sequence[tuple[str, str, str]]:
    return [
        (str(number), "other experts", "")
        if shares is None
        else (str(number), f"{math.fsum(shares) / len(shares):.2%}", f"{max(shares):.2%}")
        for number, shares in enumerate(told.changed)
    ]
