"""Which expert took which patch: regions of the pictures, to be laid over them in colour."""

import colorsys
from typing import NamedTuple

import numpy as np

from dit_moe.config import ModelConfig, MoEConfig
from dit_moe.models.parameters import places
from dit_moe.moe.assignments import ExpertRanges
from dit_moe.storage.colours import on_white

SHOWN = 8
"""As many pictures at most lie side by side."""
_COLUMNS, _CELL, _GAP = 4, 128, 8  # pixels
_NONE = "no expert"


class Overlay(NamedTuple):
    """Pictures side by side and, for each expert that has any, where its patches are."""

    picture: np.ndarray
    """uint8 [h, w, 3]."""
    regions: list[tuple[np.ndarray, str]]
    """Each bool [h, w], with the expert's name."""


def layer_titles(model: ModelConfig) -> list[str]:
    """What to call the layers with experts, in order."""
    return [f"block {number}" for number, place in enumerate(places(model)) if place.moe]


def expert_names(moe: MoEConfig) -> list[str]:
    """What `Recorder.first` means in a layer: the name of each index. From there on: none."""
    ranges = ExpertRanges.of(moe)
    names = [f"expert {e}" for e in range(ranges.routed)]
    names += ["unconditional"] * ranges.unconditional
    return names + [f"{kind} {m}" for m, kind in enumerate(ranges.cheap)]


def colours(model: ModelConfig) -> dict[str, str]:
    """A colour for every name, as #rrggbb: neighbours are far from each other."""
    names = dict.fromkeys(name for moe in model.mixtures for name in expert_names(moe))
    found = {}
    for place, name in enumerate(names):
        # The golden section of the circle of hues, in three strengths.
        lightness = (0.5, 0.35, 0.65)[place % 3]
        rgb = colorsys.hls_to_rgb(place * 0.618034 % 1, lightness, 0.85)
        found[name] = "#" + "".join(f"{round(255 * part):02x}" for part in rgb)
    return {**found, _NONE: "#808080"}


def overlay(
    pictures: np.ndarray, first_VxLxNxS: np.ndarray, call: int, layer: int, model: ModelConfig
) -> Overlay:
    """The first pictures side by side, with the experts of one call of the network and one layer.

    Args:
      pictures: uint8 [N, H, W, C].
      first_VxLxNxS: as of `Recorder.first`.
      call: from 0, at the noise.
      layer: from 0, of those with experts.
      model: which took them.
    """
    shown = on_white(pictures[:SHOWN])
    shown = np.broadcast_to(shown, (*shown.shape[:3], 3))
    scale = max(1, -(-_CELL // max(shown.shape[1:3])))
    height, width = (scale * side for side in shown.shape[1:3])
    grid = [side // model.patch_size for side in model.image_shape[:2]]
    first_NxHxW = first_VxLxNxS[call, layer, : len(shown)].reshape(-1, *grid)
    names = [*expert_names(model.mixtures[layer]), _NONE]
    first_NxHxW = np.minimum(first_NxHxW, len(names) - 1)
    place = _mosaic(first_NxHxW[..., None], height, width, -1)[..., 0]
    regions = [(place == e, names[e]) for e in np.unique(first_NxHxW)]
    return Overlay(_mosaic(shown, height, width, 255).astype(np.uint8), regions)


def _mosaic(tiles_NxHxWxC: np.ndarray, height: int, width: int, empty: int) -> np.ndarray:
    """The tiles, each enlarged without smoothing, in rows: [h, w, C] int."""
    number, rows, columns, channels = tiles_NxHxWxC.shape
    across = min(_COLUMNS, number)
    down = -(-number // across)
    shape = down * (height + _GAP) - _GAP, across * (width + _GAP) - _GAP, channels
    canvas = np.full(shape, empty)
    row_H, column_W = np.arange(height) * rows // height, np.arange(width) * columns // width
    for place, tile in enumerate(tiles_NxHxWxC):
        top, left = place // across * (height + _GAP), place % across * (width + _GAP)
        canvas[top : top + height, left : left + width] = tile[row_H][:, column_W]
    return canvas
