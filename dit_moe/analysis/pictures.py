"""Pictures of an analysis."""

import io
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from dit_moe.analysis.counts import Counts
from dit_moe.analysis.record import Analysis, Inputs, InputsName, Layer
from dit_moe.analysis.text import TITLES

_DPI = 100
_COLUMNS = 4
_WIDTH = 10.0  # inches

Pictures = dict[str, tuple[str, bytes]]
"""Caption and PNG by file name."""


def draw(analysis: Analysis, counts: Mapping[InputsName, Counts], experts: int) -> Pictures:
    """All pictures, in the order in which they tell the story.

    Args:
      analysis: the numbers.
      counts: what they are made of, by inputs.
      experts: how many are routed to; from there on is the unconditional one.
    """
    pictures: Pictures = {}
    # The unconditional expert has no tokens of a class.
    routed = {
        name: c.position_time_LxBxSxE[..., :experts].astype(np.float64)
        for name, c in counts.items()
    }
    blocks = [layer.block for layer in next(iter(analysis.inputs.values())).layers]
    titles = [f"block {block}" for block in blocks]
    for name, inputs in analysis.inputs.items():
        c, where = counts[name], TITLES[name].lower()
        pictures |= {
            f"{name}_position.png": (
                f"How often each expert is chosen at each position ({where}); white to dark is 0 "
                "to the layer's largest.",
                _position(routed[name], titles, c.grid),
            ),
            f"{name}_time.png": (
                "How often each expert is chosen at each time, from data (left) to noise "
                f"({where}).",
                _time(routed[name], titles),
            ),
            f"{name}_class.png": (
                "How often each expert is chosen for each class, and for the null label "
                f"({where}).",
                _classes(c, titles, analysis.class_names),
            ),
            f"{name}_depth.png": (
                f"What the choice depends on, how even it is, and how concentrated at which time, "
                f"by depth ({where}).",
                _depth(inputs),
            ),
        }
        true = {f"block {x.block}": x.true_experts for x in inputs.layers if x.true_experts}
        if true:
            pictures[f"{name}_true_experts.png"] = (
                f"Experts of a token at each position, cheap ones left out ({where}).",
                _matrices(
                    [np.reshape(t.by_position, c.grid) for t in true.values()],
                    list(true),
                    "column",
                    "row",
                    "magma_r",
                    (0, None),
                ),
            )
        if len(blocks) > 1:
            pairs = [f"{a} to {b}" for a, b in zip(titles[:-1], blocks[1:], strict=True)]
            pictures[f"{name}_coactivation.png"] = (
                "Experts of a token in one layer (rows) and the next (columns): log2 of how much "
                f"more often than by independent layers ({where}).",
                _coactivation(c.coactivation_LxExE[:, :experts, :experts], pairs),
            )
    pictures["similarity.png"] = (
        "Cosine of the experts' weights.",
        _matrices(analysis.expert_similarity, titles, "expert", "expert", "RdBu_r", (-1, 1)),
    )
    if analysis.prototypes is not None:
        cosine = analysis.prototypes.with_class_difference
        pictures["prototypes.png"] = (
            "Cosine of each prototype with the mean token of each class, less the mean of all.",
            _matrices(
                cosine, titles, "class", "prototype", "RdBu_r", (-1, 1), analysis.class_names
            ),
        )
    return pictures


def _position(count_LxBxSxE: np.ndarray, titles: Sequence[str], grid: tuple[int, int]) -> bytes:
    """One row a layer: the maps of its experts, P(expert | position), side by side."""
    p_LxSxE = _shares(count_LxBxSxE.sum(axis=1))
    (height, width), experts = grid, p_LxSxE.shape[2]
    gap = max(1, width // 8)
    figure = _figure(0.35 + len(titles) * (0.15 + _WIDTH / experts * height / width))
    for i, axes in enumerate(figure.subplots(len(titles), 1, squeeze=False)[:, 0]):
        mosaic = np.full((height, experts * (width + gap) - gap), np.nan)
        for e in range(experts):
            left = e * (width + gap)
            mosaic[:, left : left + width] = p_LxSxE[i, :, e].reshape(grid)
        axes.imshow(mosaic, cmap="magma_r", vmin=0, interpolation="nearest")
        axes.set_ylabel(titles[i], fontsize=9)
        axes.set_yticks([])
        centres = np.arange(experts) * (width + gap) + (width - 1) / 2
        axes.set_xticks(centres if i == len(titles) - 1 else [], labels=None)
        if i == len(titles) - 1:
            axes.set_xticklabels([str(e) for e in range(experts)], fontsize=8)
            axes.set_xlabel("expert", fontsize=9)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return _png(figure)


def _time(count_LxBxSxE: np.ndarray, titles: Sequence[str]) -> bytes:
    p_LxBxE = _shares(count_LxBxSxE.sum(axis=2))
    bins = p_LxBxE.shape[1]
    labels = [f"{b / bins:.1f}" for b in range(bins)]
    return _matrices(p_LxBxE.swapaxes(1, 2), titles, "time", "expert", "magma_r", (0, None), labels)


def _classes(counts: Counts, titles: Sequence[str], names: Sequence[str]) -> bytes:
    """On the scale of the classes: with an unconditional expert, null labels are beyond it."""
    count_LxYxE, labels = counts.by_class(), list(names)
    largest = float(np.nan_to_num(_shares(count_LxYxE)).max())
    if counts.null_visits:
        null_Lx1xE = counts.null_LxBxE.sum(axis=1, keepdims=True)
        count_LxYxE, labels = np.concatenate([count_LxYxE, null_Lx1xE], axis=1), [*labels, "null"]
    p_LxExY = _shares(count_LxYxE).swapaxes(1, 2)
    return _matrices(p_LxExY, titles, "class", "expert", "magma_r", (0, largest), labels)


def _depth(inputs: Inputs) -> bytes:
    figure = _figure(3.3)
    information, balance, concentration = figure.subplots(1, 3)
    layers = inputs.layers
    blocks = [layer.block for layer in layers]
    for factor, title in (("position", "position"), ("time", "time step"), ("label", "class")):
        share = [100 * getattr(layer, factor).share for layer in layers]
        information.plot(blocks, share, marker="o", markersize=4, label=title)
    information.set_ylabel("% of the choice explained", fontsize=9)
    for title, value in (
        ("balance", [layer.balance for layer in layers]),
        ("busiest expert's share", [layer.busiest for layer in layers]),
    ):
        balance.plot(blocks, value, marker="o", markersize=4, label=title)
    balance.set_ylim(0, 1.02)
    for axes in (information, balance):
        axes.set_xlabel("block", fontsize=9)
        axes.legend(fontsize=8, frameon=False)
        axes.tick_params(labelsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    _concentration(concentration, layers)
    return _png(figure)


def _concentration(axes: Axes, layers: Sequence[Layer]) -> None:
    """Layers from top to bottom, times from data to noise."""
    by_time = np.array([layer.concentration_by_time for layer in layers], float)
    image = axes.imshow(by_time, cmap="magma_r", vmin=0, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(len(layers)), [str(layer.block) for layer in layers], fontsize=8)
    axes.set_xticks([0, by_time.shape[1] - 1], ["data", "noise"], fontsize=8)
    axes.set_ylabel("block", fontsize=9)
    axes.set_title("concentration", fontsize=9)
    colours = axes.figure.colorbar(image, ax=axes)
    colours.ax.tick_params(labelsize=8)


def _coactivation(count_LxExE: np.ndarray, titles: Sequence[str]) -> bytes:
    """Nothing is drawn where an expert is never chosen."""
    joint = count_LxExE / np.maximum(count_LxExE.sum(axis=(1, 2), keepdims=True), 1)
    independent = joint.sum(axis=2, keepdims=True) * joint.sum(axis=1, keepdims=True)
    seen = independent > 0
    lift = np.maximum(joint, 1e-12) / np.where(seen, independent, 1)
    lift = np.where(seen, np.clip(np.log2(lift), -2, 2), np.nan)
    return _matrices(lift, titles, "expert of the next", "expert", "RdBu_r", (-2, 2))


def _matrices(
    matrices: Iterable[ArrayLike],
    titles: Sequence[str],
    x: str,
    y: str,
    colours: str,
    limits: tuple[float, float | None],
    x_labels: Sequence[str] | None = None,
) -> bytes:
    """One heat map a layer that has a matrix, `_COLUMNS` in a row."""
    shown = [(t, np.asarray(m)) for t, m in zip(titles, matrices, strict=True) if np.size(m)]
    titles = [title for title, _ in shown]
    columns = min(_COLUMNS, len(titles))
    rows = -(-len(titles) // columns)
    figure = _figure(rows * 2.7 if columns > 2 else rows * 3.4)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (title, matrix) in zip(grid, shown, strict=False):
        image = axes.imshow(
            matrix,
            cmap=colours,
            vmin=limits[0],
            vmax=limits[1],
            aspect="auto",
            interpolation="nearest",
        )
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(x, fontsize=8)
        axes.set_ylabel(y, fontsize=8)
        m, n = matrix.shape
        _ticks(axes.xaxis, x_labels or [str(i) for i in range(n)], 20 // columns)
        _ticks(axes.yaxis, [str(i) for i in range(m)], 16)
        figure.colorbar(image, ax=axes).ax.tick_params(labelsize=7)
    for axes in grid[len(titles) :]:
        axes.set_axis_off()
    return _png(figure)


def _ticks(axis, labels: Sequence[str], most: int) -> None:
    """Labels of the places 0, 1, ...; of many, some, or more if they are turned."""
    turned = max(len(label) for label in labels) > 4 and axis.axis_name == "x"
    places = range(0, len(labels), -(-len(labels) // (17 if turned else most)))
    # A class may be named "$": to Matplotlib, formulas lie between two of them.
    texts = [labels[i][:14].replace("$", r"\$") for i in places]
    axis.set_ticks(list(places), texts, fontsize=7)
    if turned:
        for label in axis.get_ticklabels():
            label.set_rotation(60)
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")


def _shares(count: np.ndarray) -> np.ndarray:
    """Along the last axis; NaN, drawn as nothing, where there are no counts."""
    total = count.sum(axis=-1, keepdims=True)
    return np.where(total > 0, count / np.maximum(total, 1), np.nan)


def _figure(height: float) -> Figure:
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
