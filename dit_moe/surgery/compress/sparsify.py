"""Single weights of routed experts away: the smallest, or those that matter least for what the
experts see (Wanda, Sun et al. 2023), evenly or more where a layer has fewer outliers (OWL, Yin et
al. 2023).

An open folder stores what is left with a bit mask. Nothing is faster for it: XLA multiplies zeros.
"""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from dit_moe.config.rules import RULES, NonNegativeFloat, PositiveFloat
from dit_moe.surgery.compress.calibration import Calibration
from dit_moe.surgery.compress.inputs import input_norms
from dit_moe.surgery.compress.layers import Unit, network_of, units_of
from dit_moe.surgery.compress.statistics import Sums
from dit_moe.surgery.compress.steps import Done, Model, StepSettings
from dit_moe.surgery.interchangeable import check_sparse

MATRICES = ("w_in", "w_out")


@dataclass(frozen=True, config=RULES, kw_only=True)
class SparsifySettings(StepSettings):
    """`share` of the weights that each output of a matrix is made of become 0, rounded down."""

    name: Literal["sparsify"] = "sparsify"
    share: Annotated[float, Field(ge=0, lt=1)]
    by: Literal["magnitude", "wanda"] = "wanda"
    """What a weight is worth. `magnitude`: |w|. `wanda`: |w| times the root mean square of its
    input over the expert's tokens."""
    layers: Literal["even", "owl"] = "even"
    """`owl`: a layer with more outliers keeps more, and the mean over layers stays `share`."""
    spread: NonNegativeFloat = 0.08
    """With `owl`, by how much the share of a layer differs from the mean of the extremes at most:
    lambda there."""
    outlier: PositiveFloat = 5.0
    """With `owl`, an outlier is worth more than so many times the mean of its matrix: M there."""

    @property
    def needs_calibration(self) -> bool:
        """It asks what matrices multiply."""
        return self.by == "wanda"


def sparsify(model: Model, settings: SparsifySettings, calibration: Calibration | None) -> Done:
    """Sets the weights of routed experts that matter least to 0.

    All are chosen from the model as it was given. An expert without a token is judged by magnitude
    (`told` counts them). The unconditional expert, the shared one and those of other kinds
    (`moe.unlike`) stay.

    Raises:
      ConfigError: the model has no experts.
    """
    network = model.config.model
    check_sparse(network)
    if settings.share == 0:
        return Done(model, {"shares": [0.0] * len(network.mixtures), "without_tokens": 0})
    units = units_of(network, model.parameters)
    layers = [number for number, unit in enumerate(units) if unit.segment.moe is not None]
    norms: list[Sums] = [{} for _ in layers]
    without = 0
    if settings.by == "wanda":
        assert calibration is not None
        norms = input_norms(model, calibration)
        routed = [units[number].moe.groups[0].number for number in layers]
        without = sum(int((n["tokens"][:e] == 0).sum()) for n, e in zip(norms, routed, strict=True))
    worth = [_worth(units[number], norm) for number, norm in zip(layers, norms, strict=True)]
    shares = np.full(len(layers), settings.share)
    if settings.layers == "owl":
        ratios = np.array([outlier_percentage(layer, settings.outlier) for layer in worth])
        shares = owl_shares(ratios, settings.share, settings.spread)
    for number, layer, share in zip(layers, worth, shares, strict=True):
        units[number] = _thinner(units[number], layer, float(share))
    told = {"shares": np.round(shares, 6).tolist(), "without_tokens": without}
    return Done(model.of(*network_of(network, model.parameters, units)), told)


def _worth(unit: Unit, norm: Sums) -> dict[str, np.ndarray]:
    """[E, in, out] of each matrix of the routed experts."""
    found = {}
    for name in MATRICES:
        number = unit.moe.groups[0].number
        weight = np.abs(unit.parameters[f"{unit.mixture}experts.{name}"][:number])
        scale = norm.get(name)
        if scale is not None:
            weight = weight * scale[:number, :, None].astype(np.float32)
        found[name] = weight
    return found


def outlier_percentage(worth: dict[str, np.ndarray], outlier: float) -> float:
    """How many of a layer's weights, in percent, are worth more than so many times the mean of
    their expert's matrix."""
    found = [w > outlier * w.mean(axis=(1, 2), keepdims=True) for w in worth.values()]
    return 100 * sum(int(f.sum()) for f in found) / sum(f.size for f in found)


def owl_shares(ratio_L: np.ndarray, share: float, spread: float) -> np.ndarray:
    """The share of each layer, [L]: less where there are more outliers, and `share` on average
    where none would be below 0.01 or above 0.99."""
    width = ratio_L.max() - ratio_L.min()
    if width == 0:
        return np.full(len(ratio_L), share)
    scaled_L = (ratio_L - ratio_L.min()) * 2 * spread / width
    return np.clip(share - (scaled_L - scaled_L.mean()), 0.01, 0.99)


def _thinner(unit: Unit, worth: dict[str, np.ndarray], share: float) -> Unit:
    own = {k: v for k, v in unit.parameters.items() if k.startswith(unit.mixture)}
    for name, worth_ExIxO in worth.items():
        path = f"{unit.mixture}experts.{name}"
        matrix = own[path].copy()
        routed = matrix[: unit.moe.groups[0].number]
        lowest = np.argsort(worth_ExIxO, axis=1, kind="stable")
        lowest = lowest[:, : int(worth_ExIxO.shape[1] * share)]
        np.put_along_axis(routed, lowest, 0.0, axis=1)
        own[path] = matrix
    return unit.of(unit.moe, own)
