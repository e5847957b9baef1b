"""A picture of samples beside real digits, one row per class."""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dit_moe.data import digits

NUM_SAMPLES = 10
NUM_REAL = 6

_GAP = 1  # image pixels between tiles
_PAPER = 1  # image pixels of white around an image, as the digits touch their edges
_TILE = digits.IMAGE_SIZE + 2 * _PAPER
_PITCH = _TILE + _GAP
_SCALE = 6  # screen pixels per image pixel, whole so that all squares are of one size
_DPI = 150
_INK = "#1f2328"
_MUTED = "#656d76"
_SAMPLE_BACKGROUND = np.array([0.78, 0.85, 0.96])
_REAL_BACKGROUND = np.array([0.84, 0.85, 0.86])


def draw(image_NxHxWxC: np.ndarray, label_N: np.ndarray) -> bytes:
    """The first samples of every class beside real held-out digits, as a PNG.

    Args:
        image_NxHxWxC: uint8 [N, 8, 8, C], C any; channels are averaged.
        label_N: integers [N], 0 to 9. Classes may be absent: their places stay empty.
    """
    left, top, between, margin = 72, 104, 48, 24  # screen pixels
    height = (digits.NUM_CLASSES * _PITCH + _GAP) * _SCALE
    widths = [(num * _PITCH + _GAP) * _SCALE for num in (NUM_SAMPLES, NUM_REAL)]
    total = np.array([left + sum(widths) + between + margin, top + height + margin])
    figure = Figure(figsize=tuple(total / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)

    columns = (
        (left, widths[0], "Generated", f"first {NUM_SAMPLES} of each class, not selected"),
        (left + widths[0] + between, widths[1], "Real", "held out from training"),
    )
    mosaics = (
        _mosaic(image_NxHxWxC, label_N, NUM_SAMPLES, _SAMPLE_BACKGROUND),
        _mosaic(*digits.load("heldout"), NUM_REAL, _REAL_BACKGROUND),
    )
    for (x, width, title, subtitle), mosaic_HxWx3 in zip(columns, mosaics, strict=True):
        box = (x / total[0], margin / total[1], width / total[0], height / total[1])
        axes = figure.add_axes(box)
        axes.imshow(mosaic_HxWx3, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        _heading(axes, title, subtitle)
        if x == left:
            _label_rows(axes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


def _mosaic(
    image_NxHxWxC: np.ndarray, label_N: np.ndarray, num: int, background_3: np.ndarray
) -> np.ndarray:
    """float64 RGB [111, num * 11 + 1, 3]: ink on white tiles, row c the first `num` of class c."""
    size = digits.NUM_CLASSES * _PITCH + _GAP, num * _PITCH + _GAP
    mosaic_HxWx3 = np.tile(background_3, (*size, 1))
    for row in range(digits.NUM_CLASSES):
        for column, image_HxWxC in enumerate(image_NxHxWxC[label_N == row][:num]):
            y, x = row * _PITCH + _GAP, column * _PITCH + _GAP
            tile_HxW = np.pad(1 - image_HxWxC.mean(-1) / 255, _PAPER, constant_values=1)
            mosaic_HxWx3[y : y + _TILE, x : x + _TILE] = tile_HxW[..., None]
    return mosaic_HxWx3


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


def _label_rows(axes: Axes) -> None:
    for label in range(digits.NUM_CLASSES):
        axes.annotate(
            str(label),
            (0, label * _PITCH + _GAP + _TILE / 2 - 0.5),
            xycoords=("axes fraction", "data"),
            xytext=(-14, 0),
            textcoords="offset points",
            fontsize=14,
            fontweight="bold",
            color=_INK,
            ha="center",
            va="center",
        )
