"""A picture of samples beside real images, one row per class."""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .judged import Judged

NUM_SAMPLES = 10
NUM_REAL = 6
MOST_CLASSES = 20

_GAP = 1  # image pixels between tiles
_PAPER = 1  # image pixels of white around an image, as digits touch their edges
_TILE = 60  # screen pixels of a tile, about; images are enlarged by whole factors
_LETTER = 17  # screen pixels of a letter of a class's name, about
_LONGEST = 14  # letters
_DPI = 150
_INK = "#1f2328"
_MUTED = "#656d76"
_SAMPLE_BACKGROUND = np.array([0.78, 0.85, 0.96])
_REAL_BACKGROUND = np.array([0.84, 0.85, 0.86])


def draw(image_NxHxWxC: np.ndarray, label_N: np.ndarray, data: Judged) -> bytes:
    """The first samples of every class beside real held-out images, as a PNG.

    Args:
        image_NxHxWxC: uint8 [N, H, W, C] of the data's size, C of 1 or 3; ink is grey, channels
            are averaged.
        label_N: integers [N], places in `data.classes`. Classes may be absent: their places stay
            empty. Only the first `MOST_CLASSES` are shown.
        data: what they are samples of.
    """
    rows = _Rows(data)
    top, between, margin = 104, 48, 24  # screen pixels
    left = max(72, 38 + _LETTER * max(map(len, rows.names)))
    height = (len(rows.names) * rows.pitch[0] + _GAP) * rows.scale
    widths = [(num * rows.pitch[1] + _GAP) * rows.scale for num in (NUM_SAMPLES, NUM_REAL)]
    total = np.array([left + sum(widths) + between + margin, top + height + margin])
    figure = Figure(figsize=tuple(total / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)

    columns = (
        (left, widths[0], "Generated", f"first {NUM_SAMPLES} of each class, not selected"),
        (left + widths[0] + between, widths[1], "Real", "held out from training"),
    )
    mosaics = (
        rows.mosaic(image_NxHxWxC, label_N, NUM_SAMPLES, _SAMPLE_BACKGROUND),
        rows.mosaic(*data.heldout, NUM_REAL, _REAL_BACKGROUND),
    )
    for (x, width, title, subtitle), mosaic_HxWx3 in zip(columns, mosaics, strict=True):
        box = (x / total[0], margin / total[1], width / total[0], height / total[1])
        axes = figure.add_axes(box)
        axes.imshow(mosaic_HxWx3, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        _heading(axes, title, subtitle)
        if x == left:
            rows.label(axes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


class _Rows:
    """Where tiles lie, in image pixels."""

    def __init__(self, data: Judged):
        self.names = [name[:_LONGEST] for name in data.classes[:MOST_CLASSES]]
        self.tile = tuple(side + 2 * _PAPER for side in data.size)
        self.pitch = tuple(side + _GAP for side in self.tile)
        self.scale = max(1, _TILE // max(self.tile))
        """Screen pixels per image pixel, whole so that all squares are of one size."""
        self._ink = data.ink

    def mosaic(
        self, image_NxHxWxC: np.ndarray, label_N: np.ndarray, num: int, background_3: np.ndarray
    ) -> np.ndarray:
        """float64 RGB [H, W, 3]: row c has the first `num` images of class c."""
        (height, width), pitch = self.tile, self.pitch
        size = len(self.names) * pitch[0] + _GAP, num * pitch[1] + _GAP
        mosaic_HxWx3 = np.tile(background_3, (*size, 1))
        for row in range(len(self.names)):
            for column, image_HxWxC in enumerate(image_NxHxWxC[label_N == row][:num]):
                y, x = row * pitch[0] + _GAP, column * pitch[1] + _GAP
                mosaic_HxWx3[y : y + height, x : x + width] = self._tile(image_HxWxC)
        return mosaic_HxWx3

    def _tile(self, image_HxWxC: np.ndarray) -> np.ndarray:
        """float64 [H, W, 1 or 3] with white around it."""
        x = image_HxWxC / 255
        x = 1 - x.mean(-1, keepdims=True) if self._ink else x
        return np.pad(x, [(_PAPER, _PAPER), (_PAPER, _PAPER), (0, 0)], constant_values=1)

    def label(self, axes: Axes) -> None:
        """Writes the names at the left."""
        for row, name in enumerate(self.names):
            axes.annotate(
                name,
                (0, row * self.pitch[0] + _GAP + self.tile[0] / 2 - 0.5),
                xycoords=("axes fraction", "data"),
                xytext=(-8, 0),
                textcoords="offset points",
                fontsize=14 if len(name) < 3 else 10,
                fontweight="bold",
                color=_INK,
                ha="right",
                va="center",
            )


def _heading(axes: Axes, title: str, subtitle: str) -> None:
    for text, offset, size, weight, color in (
        (title, 24, 13, "bold", _INK),
        (subtitle, 9, 8.5, "normal", _MUTED),
    ):
        axes.annotate(
            text,
            (0, 1),
            xycoords="axes fraction",
            xytext=(0, offset),
            textcoords="offset points",
            fontsize=size,
            fontweight=weight,
            color=color,
        )
