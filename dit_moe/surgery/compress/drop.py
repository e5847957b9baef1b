"""Experts away: those that are least worth, by one of several measures, are dropped."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic.dataclasses import dataclass

from dit_moe.config.rules import RULES, PositiveInt, Seed
from dit_moe.surgery.compress.calibration import Calibration
from dit_moe.surgery.compress.experts import check_mixtures, with_experts
from dit_moe.surgery.compress.layers import network_of, units_of
from dit_moe.surgery.compress.steps import Done, Model, StepSettings


@dataclass(frozen=True, config=RULES, kw_only=True)
class DropSettings(StepSettings):
    """Every layer keeps so many experts; a layer that has no more keeps all."""

    name: Literal["drop"] = "drop"
    keep: PositiveInt
    by: Literal["random"] = "random"
    """What an expert is worth. `random`: by lot, what other measures are to be held to."""
    seed: Seed = 0


def drop(model: Model, settings: DropSettings, calibration: Calibration | None) -> Done:
    """Drops the experts that are worth least, and the rows that the router has for them.

    Of experts that are worth the same, the first stay. A softmax over all experts has another
    denominator without some, so that the weights of those that stay grow.

    Raises:
      ConfigError: experts cannot be taken from the model, or a token would have too few.
    """
    del calibration
    network = model.config.model
    check_mixtures(network)
    worth = [
        np.random.default_rng([settings.seed, layer]).permutation(moe.num_experts)
        for layer, moe in enumerate(network.mixtures)
    ]
    kept = [best(worth_E, settings.keep) for worth_E in worth]
    return keep_experts(model, kept)


def best(worth_E: np.ndarray, number: int) -> np.ndarray:
    """The experts that are worth most, at most so many, ascending; of equal ones the first."""
    return np.sort(np.argsort(-worth_E, kind="stable")[:number])


def keep_experts(model: Model, kept: Sequence[np.ndarray]) -> Done:
    """The model with some of the experts of every layer.

    Args:
      model: with mixtures that `check_mixtures` allows.
      kept: for each MoE layer in order those that stay, ascending.

    Raises:
      ConfigError: a token would have too few.
    """
    network = model.config.model
    told = {"experts": [kept_K.tolist() for kept_K in kept]}
    if all(len(k) == moe.num_experts for k, moe in zip(kept, network.mixtures, strict=True)):
        return Done(model, told)
    units, layers = units_of(network, model.parameters), iter(kept)
    for number, unit in enumerate(units):
        if unit.segment.moe is not None:
            units[number] = with_experts(network, unit, next(layers))
    return Done(model.of(*network_of(network, model.parameters, units)), told)
