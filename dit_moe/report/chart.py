"""Line charts as SVG that takes its colours and its width from the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 420, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 18, 8, 24
_POINTS = 300
"""As many at most are drawn of a line."""
_LOG_FROM = 30
"""The ratio of largest to smallest from which on the axis is logarithmic."""
_TINY, _HUGE = 1e-300, 1e300
"""Beyond these, differences and ratios of numbers are 0 or not finite."""
_COLOURS = ("#4c8dd6", "#e0812a", "#3aa76d", "#d0525f", "#9a78d1", "#b08b3e", "#d872b0", "#7f8fa3")


@dataclass(frozen=True)
class Line:
    """A curve of a chart."""

    label: str
    """Empty for the only one."""
    x: Sequence[float]
    y: Sequence[float]
    """NaN where there is no point."""


@dataclass(frozen=True)
class Chart:
    """A drawing with its legend."""

    svg: Markup
    legend: tuple[tuple[str, str], ...]
    """Colour and label of each line; empty for one line without a label."""
    scale: str
    """"" or "log"."""


def drawable(value: float) -> bool:
    """Whether it can be a point: neither NaN nor beyond what an axis can show."""
    return abs(value) < _HUGE


def draw(title: str, lines: Sequence[Line], *, linear: bool = False) -> Chart:
    """Draws lines over their steps.

    Args:
      title: for those who do not see.
      lines: with at least one point that is `drawable`; x all are.
      linear: no logarithmic axis, however large the ratio.
    """
    points = [p for line in lines for p in zip(line.x, line.y, strict=True) if drawable(p[1])]
    low, high = min(y for _, y in points), max(y for _, y in points)
    log = not linear and low > _TINY and high / low > _LOG_FROM
    x_N = [x for x, _ in points]
    x_axis = _Axis(min(x_N), max(x_N), False, _LEFT, WIDTH - _RIGHT)
    y_axis = _Axis(low, high, log, HEIGHT - _BOTTOM, _TOP)
    parts = [
        Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, title)
    ]
    for value in y_axis.ticks():
        y = y_axis.place(value)
        parts.append(
            Markup(
                '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
                '<text x="{}" y="{:.1f}" text-anchor="end">{}</text>'
            ).format(_LEFT, WIDTH - _RIGHT, y, y, _LEFT - 6, y + 4, short(value))
        )
    for value in x_axis.ticks():
        parts.append(
            Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                x_axis.place(value), HEIGHT - 7, short(value)
            )
        )
    colours = [_colour(i, len(lines)) for i in range(len(lines))]
    for line, colour in zip(lines, colours, strict=True):
        for piece in _pieces(line):
            text = " ".join(f"{x_axis.place(x):.1f},{y_axis.place(y):.1f}" for x, y in piece)
            # A round cap makes a point of a line without length.
            text = text if len(piece) > 1 else f"{text} {text}"
            parts.append(Markup('<polyline points="{}" stroke="{}"/>').format(text, colour))
    parts.append(Markup("</svg>"))
    legend = tuple((c, line.label) for c, line in zip(colours, lines, strict=True) if line.label)
    return Chart(Markup("").join(parts), legend, "log" if log else "")


def short(value: float) -> str:
    """A number for an axis: 4 significant digits at most, thousands as k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


class _Axis:
    """From values to places in the drawing."""

    def __init__(self, low: float, high: float, log: bool, start: float, end: float):
        size = max(abs(low), abs(high))
        if high - low <= max(size * 1e-12, _TINY):  # too close to be told apart
            size = size if size > _TINY else 1
            low, high = low - size / 2, high + size / 2
        self._log = log
        self._low, self._high = (math.log10(low), math.log10(high)) if log else (low, high)
        self._start, self._end = start, end

    def place(self, value: float) -> float:
        value = math.log10(value) if self._log else value
        share = (value - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Round numbers inside."""
        if self._log and self._high - self._low >= 2:
            return [10.0**i for i in range(math.ceil(self._low), math.floor(self._high) + 1)]
        if self._log:
            decades = range(math.floor(self._low), math.ceil(self._high) + 1)
            values = [m * 10.0**i for i in decades for m in (1, 2, 5)]
            return [v for v in values if self._low <= math.log10(v) <= self._high]
        rough = (self._high - self._low) / 5
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough * 0.99)
        first, last = math.ceil(self._low / step), math.floor(self._high / step)
        return [round(i * step, 12) for i in range(first, last + 1)]


def _pieces(line: Line) -> list[list[tuple[float, float]]]:
    """Runs of points without a gap, thinned out evenly."""
    stride = -(-len(line.x) // _POINTS)
    points = list(zip(line.x, line.y, strict=True))
    kept = points[::stride]
    if points and kept[-1] != points[-1]:
        kept.append(points[-1])
    pieces: list[list[tuple[float, float]]] = [[]]
    for point in kept:
        if drawable(point[1]):
            pieces[-1].append(point)
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _colour(i: int, count: int) -> str:
    """The colour of line i: few lines differ plainly, many go from blue to red."""
    if count <= len(_COLOURS):
        return _COLOURS[i]
    return f"hsl({220 - 220 * i / (count - 1):.0f} 60% 55%)"
