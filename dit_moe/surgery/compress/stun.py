"""Experts that are alike become one: the first part of STUN (Lee et al. 2024, arXiv 2409.06211).

By the distance of what the router has for two experts, and by how often tokens choose both, experts
of a layer are grouped; each group is left with one of them or with their mean. How many a layer
keeps follows from one threshold for all, so that layers differ.
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from dit_moe.config import ConfigError
from dit_moe.config.rules import RULES, NonNegativeFloat, NonNegativeInt, PositiveInt, require
from dit_moe.moe.routing import Conditioning, Routing
from dit_moe.nn.feed_forward import Experts
from dit_moe.surgery.compress.calibration import Calibration
from dit_moe.surgery.compress.clusters import clusters_of_all
from dit_moe.surgery.compress.experts import (
    Fewer,
    check_mixtures,
    least_experts,
    total_left,
    with_fewer,
)
from dit_moe.surgery.compress.layers import Unit, units_of
from dit_moe.surgery.compress.nearest import weights_of
from dit_moe.surgery.compress.statistics import layer_sums
from dit_moe.surgery.compress.steps import Done, Model, StepSettings


@dataclass(frozen=True, config=RULES, kw_only=True)
class StunSettings(StepSettings):
    """All layers together keep exactly `total` experts, or lose `share` of them. In the paper the
    distance is of rows alone, in the command of its public code of choices alone."""

    name: Literal["stun"] = "stun"
    total: PositiveInt | None = None
    share: Annotated[float, Field(ge=0, lt=1)] | None = None
    rows: NonNegativeFloat = 1.0
    """Weight of the distance between the router's columns of two experts, over the norm of all of
    the layer's; of prototypes, which are compared by direction, between unit vectors."""
    choices: NonNegativeFloat = 0.0
    """Weight of how often a token has both among its best two (or top_k), over the mean of all
    pairs; it makes experts near."""
    means_up_to: NonNegativeInt = 0
    """A layer with at most so many groups has their means, one with more the member of each whose
    weights are nearest to the mean. 0: never, 3 the paper's, a large number always."""
    router: Literal["drop", "remap"] = "drop"
    """`drop`: the column of the member that stays, or the mean of them. `remap`: all columns
    stay, and what a group is left with stands in for all of it."""

    def __post_init__(self) -> None:
        given = "neither is" if self.total is None else "both are"
        require(
            (self.total is None) != (self.share is None),
            f"of total (that stays) and share (that goes) {given} given; allowed: one",
        )
        require(
            self.rows > 0 or self.choices > 0,
            "rows and choices are 0; allowed: a weight above 0 for one of them",
        )

    @property
    def needs_calibration(self) -> bool:
        """It asks what tokens choose."""
        return self.choices > 0


def stun(model: Model, settings: StunSettings, calibration: Calibration | None) -> Done:
    """Leaves groups of experts with one.

    Raises:
      ConfigError: experts cannot be taken from the model, or no threshold leaves as many.
    """
    network = model.config.model
    check_mixtures(network)
    total = total_left(network, settings.total, settings.share)
    units = [unit for unit in units_of(network, model.parameters) if unit.segment.moe is not None]
    distances = [np.zeros((unit.moe.num_experts,) * 2) for unit in units]
    if settings.rows:
        distances = [settings.rows * row_distances(unit) for unit in units]
    if settings.choices:
        assert calibration is not None
        sums = layer_sums(model, calibration, "choices", count_choices)
        distances = [
            d - settings.choices * _over_mean(both["both"][: len(d), : len(d)])
            for d, both in zip(distances, sums, strict=True)
        ]
    least = [least_experts(unit.moe) for unit in units]
    found, threshold = clusters_of_all(distances, least, total)
    fewer = [_left(groups, unit, settings) for groups, unit in zip(found, units, strict=True)]
    done = with_fewer(model, fewer, settings.router)
    groups = [[group.tolist() for group in layer] for layer in found]
    finite = None if np.isinf(threshold) else threshold
    return Done(done.model, {**done.told, "groups": groups, "threshold": finite})


def _over_mean(both_ExE: np.ndarray) -> np.ndarray:
    return both_ExE / max(both_ExE.mean(), 1e-30)


def row_distances(unit: Unit) -> np.ndarray:
    """Between what the router has for every two routed experts, [E, E] float64."""
    start, number = f"{unit.mixture}router.", unit.moe.num_experts
    vectors = unit.parameters.get(f"{start}prototypes", unit.parameters.get(f"{start}vectors"))
    if vectors is not None:  # compared by their direction alone
        rows = np.asarray(vectors[:number], np.float64)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    elif f"{start}kernel" in unit.parameters:
        rows = np.asarray(unit.parameters[f"{start}kernel"].T[:number], np.float64)
        rows = rows / max(np.linalg.norm(rows), 1e-30)
    else:
        raise ConfigError(
            f"router {unit.moe.router.name!r} has no column for each expert; allowed: one with a "
            "kernel or prototypes"
        )
    return np.linalg.norm(rows[:, None] - rows[None], axis=-1)


def count_choices(
    x_TxD: jax.Array, conditioning: Conditioning, routing: Routing, experts: Experts
) -> dict[str, jax.Array]:
    """`both` [E, E]: of how many tokens two experts are among the best by score; 0 with themselves.
    The best are top_k, or two where a token has but one."""
    del x_TxD, conditioning, experts
    num_tokens, scored = routing.scores.shape
    k = min(max(len(routing.token) // num_tokens, 2), scored)
    _, best_TxK = jax.lax.top_k(routing.scores, k)
    member_TxE = jax.nn.one_hot(best_TxK, scored).sum(axis=1)
    # Tokens without a class are sent to an expert of their own, where there is one.
    weight_TxE = jnp.zeros((num_tokens, scored))
    weight_TxE = weight_TxE.at[routing.token, routing.expert].add(1.0, mode="drop")
    member_TxE = member_TxE * (weight_TxE.sum(axis=1, keepdims=True) > 0)
    both_ExE = jnp.matmul(member_TxE.T, member_TxE, precision=jax.lax.Precision.HIGHEST)
    return {"both": both_ExE * (1 - jnp.eye(scored))}


def _left(groups: list[np.ndarray], unit: Unit, settings: StunSettings) -> Fewer:
    """What a layer is left with."""
    stand_in_E = np.zeros(unit.moe.num_experts, int)
    for number, group in enumerate(groups):
        stand_in_E[group] = number
    if len(groups) > settings.means_up_to:
        w_ExP = weights_of(unit)
        groups = [_representative(w_ExP, group) for group in groups]
    return Fewer(groups, stand_in_E)


def _representative(w_ExP: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The member whose weights are nearest to the mean of the group, the first of several."""
    own = w_ExP[group].astype(np.float64)
    distance = np.square(own - own.mean(axis=0)).sum(axis=1)
    return group[[distance.argmin()]]
