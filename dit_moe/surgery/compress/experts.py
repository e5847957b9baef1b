"""A unit with some of its experts."""

import dataclasses

import numpy as np
import pydantic

from dit_moe.config import ConfigError, ModelConfig, MoEConfig
from dit_moe.config.rules import describe
from dit_moe.surgery.compress.layers import Unit, unit_shapes


def check_mixtures(network: ModelConfig) -> None:
    """Checks that experts can be taken from all mixtures of a network.

    Raises:
      ConfigError: there is none, or one whose experts are no interchangeable ones.
    """
    if not network.mixtures:
        raise ConfigError(
            "the model is dense, with no experts to take away; allowed: a mixture of experts"
        )
    for moe in dict.fromkeys(network.mixtures):
        if not moe.tokens_choose:
            raise ConfigError(
                f"the model's router is {moe.router.name!r}, whose experts take as many tokens as "
                "their number leaves each; allowed: a router by which tokens choose, such as "
                "'top_k' or 'prototype'"
            )
        if moe.unlike:
            kinds = ", ".join(group.kind for group in moe.unlike)
            raise ConfigError(
                f"the model's moe.unlike has {kinds}; allowed: none, as experts that are compared "
                "must be of one kind and width"
            )


def check_number(moe: MoEConfig, number: int) -> None:
    """Checks that tokens have enough experts to choose from.

    Raises:
      ConfigError: they have not.
    """
    if not moe.top_k - len(moe.cheap_experts) <= number <= moe.num_experts or number < 1:
        least = max(moe.top_k - len(moe.cheap_experts), 1)
        raise ConfigError(
            f"a layer would keep {number} of its {moe.num_experts} experts; allowed: {least} "
            f"(top_k {moe.top_k}) to {moe.num_experts}"
        )


def with_experts(network: ModelConfig, unit: Unit, kept: np.ndarray) -> Unit:
    """The unit with some of its routed experts, and the rows that the router has for them.

    The unconditional expert and cheap ones stay.

    Args:
      network: of which it is a unit.
      unit: with a mixture that `check_mixtures` allows.
      kept: which of its routed experts stay, ascending.

    Raises:
      ConfigError: the mixture does not allow as many, or its router has something else of the
        width of their number.
    """
    moe = unit.moe
    check_number(moe, len(kept))
    if len(kept) == moe.num_experts:
        return unit
    try:
        fewer = dataclasses.replace(moe, num_experts=len(kept))
        segment = dataclasses.replace(unit.segment, moe=fewer)
        shapes = unit_shapes(network, segment)
    except pydantic.ValidationError as error:
        raise ConfigError(f"the model without experts: {describe(error, 'moe')}") from None
    axes = dict(_indices(moe, kept))
    taken = {}
    for name, value in unit.parameters.items():
        if not name.startswith(unit.mixture):
            continue
        for axis, (old, new) in enumerate(zip(value.shape, shapes[name], strict=True)):
            if old == new:
                continue
            if old not in axes or len(axes[old]) != new:
                raise ConfigError(
                    f"router {moe.router.name!r} has {name} of shape {value.shape}, whose width "
                    f"{old} follows the number of experts; allowed: a router with a row of each"
                )
            value = np.take(value, axes[old], axis=axis)
        taken[name] = value
    return unit.of(fewer, taken)


def _indices(moe: MoEConfig, kept: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """By the length of an axis of experts, what is kept of it."""
    beyond = np.arange(moe.num_experts, max(moe.scored_experts, moe.total_experts))
    return [
        (moe.num_experts, kept),
        (moe.scored_experts, np.append(kept, beyond[: len(moe.cheap_experts)])),
        (moe.total_experts, np.append(kept, beyond[: int(moe.unconditional_expert)])),
    ]
