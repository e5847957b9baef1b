"""Experts away: of each layer, or of all together, those that are worth least."""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from dit_moe.config import MoEConfig
from dit_moe.config.rules import RULES, PositiveInt, Seed, require
from dit_moe.surgery.compress.calibration import Calibration
from dit_moe.surgery.compress.experts import (
    Fewer,
    RouterMode,
    check_mixtures,
    kept_alone,
    least_experts,
    total_left,
    with_fewer,
)
from dit_moe.surgery.compress.layers import units_of
from dit_moe.surgery.compress.nearest import squared_distances
from dit_moe.surgery.compress.steps import Done, Model, StepSettings
from dit_moe.surgery.compress.worth import Worth, worth_of


@dataclass(frozen=True, config=RULES, kw_only=True)
class DropSettings(StepSettings):
    """Every layer keeps `keep` experts, one that has no more keeps all; or all layers together keep
    `total`, or lose `share`."""

    name: Literal["drop"] = "drop"
    keep: PositiveInt | None = None
    total: PositiveInt | None = None
    share: Annotated[float, Field(ge=0, lt=1)] | None = None
    by: Worth = "use"
    router: RouterMode = "drop"
    """With `remap` the expert that is left whose weights are nearest stands in."""
    seed: Seed = 0
    """Of the lot."""

    def __post_init__(self) -> None:
        given = [x is not None for x in (self.keep, self.total, self.share)]
        require(
            sum(given) == 1,
            f"of keep (of each layer), total (of all layers) and share (that goes) {sum(given)} "
            "are given; allowed: one",
        )

    @property
    def needs_calibration(self) -> bool:
        """It asks what experts do."""
        return self.by != "random"


def drop(model: Model, settings: DropSettings, calibration: Calibration | None) -> Done:
    """Drops the experts that are worth least.

    Of experts that are worth the same, the first stay. `total` compares the worth of an expert over
    the mean of its layer.

    Raises:
      ConfigError: experts cannot be taken from the model, or a token would have too few.
    """
    network = model.config.model
    check_mixtures(network)
    worth = worth_of(model, settings.by, calibration, settings.seed)
    if settings.keep is not None:
        kept = [best(worth_E, settings.keep) for worth_E in worth]
    else:
        total = total_left(network, settings.total, settings.share)
        kept = best_of_all(worth, network.mixtures, total)
    pairs = zip(kept, network.mixtures, strict=True)
    fewer = [kept_alone(kept_K, moe.num_experts) for kept_K, moe in pairs]
    if settings.router == "remap":
        units = [u for u in units_of(network, model.parameters) if u.segment.moe is not None]
        fewer = [
            _with_nearest(layer, squared_distances(unit))
            for layer, unit in zip(fewer, units, strict=True)
        ]
    done = with_fewer(model, fewer, settings.router)
    return Done(done.model, {**done.told, "worth": [np.round(w, 6).tolist() for w in worth]})


def best(worth_E: np.ndarray, number: int) -> np.ndarray:
    """The experts that are worth most, at most so many, ascending; of equal ones the first."""
    return np.sort(np.argsort(-worth_E, kind="stable")[:number])


def best_of_all(
    worth: Sequence[np.ndarray], mixtures: Sequence[MoEConfig], total: int
) -> list[np.ndarray]:
    """The experts of all layers that are worth most over the mean of their layer, ascending; every
    layer has as many as tokens need.

    Args:
      worth: [E] of each layer.
      mixtures: of each layer.
      total: see `total_left`.
    """
    # Those that tokens need come first.
    share = [worth_E / max(worth_E.mean(), 1e-30) for worth_E in worth]
    for share_E, moe in zip(share, mixtures, strict=True):
        share_E[best(share_E, least_experts(moe))] = np.inf
    everywhere = best(np.concatenate(share), total)
    ends = np.cumsum([len(share_E) for share_E in share])
    layer = np.searchsorted(ends, everywhere, side="right")
    return [everywhere[layer == i] - (ends[i] - len(s)) for i, s in enumerate(share)]


def _with_nearest(fewer: Fewer, distance_ExE: np.ndarray) -> Fewer:
    """The same, in which for each expert that is gone the nearest stands in."""
    kept = np.concatenate(fewer.groups)
    nearest_E = distance_ExE[:, kept].argmin(axis=1)
    return Fewer(fewer.groups, np.where(fewer.stand_in < 0, nearest_E, fewer.stand_in))
