"""A unit with fewer experts, and what its router then has for them."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pydantic

from dit_moe.config import BiasSettings, ConfigError, ModelConfig, MoEConfig
from dit_moe.config.rules import describe
from dit_moe.surgery.compress.layers import Unit, network_of, unit_shapes, units_of
from dit_moe.surgery.compress.steps import Done, Model
from dit_moe.surgery.interchangeable import check_interchangeable

RouterMode = Literal["drop", "mask", "remap"]
"""What becomes of the router's columns of experts that are gone. `drop`: they go too, so that a
softmax has another denominator. `mask`: they stay in it, but are never chosen. `remap`: they stay
and are chosen, and another expert stands in."""
Groups = list[np.ndarray]
"""The routed experts that are left, each of them the one of this number, or the mean of several."""

_MASKED = -1e9  # added to a score by which an expert is chosen, and to no weight


@dataclasses.dataclass(frozen=True)
class Fewer:
    """What a layer is left with."""

    groups: Groups
    stand_in: np.ndarray
    """[E]: for each old expert the number of the group that stands in for it; -1: none does."""


def kept_alone(kept: np.ndarray, num_experts: int) -> Fewer:
    """Some experts as they are, ascending, for which nothing else stands in."""
    stand_in_E = np.full(num_experts, -1)
    stand_in_E[kept] = np.arange(len(kept))
    return Fewer([np.array([e]) for e in kept], stand_in_E)


def check_mixtures(network: ModelConfig) -> None:
    """Checks that experts can be taken from all mixtures of a network.

    Raises:
      ConfigError: there is none, or one whose experts are no interchangeable ones.
    """
    check_interchangeable(network)
    for moe in dict.fromkeys(network.mixtures):
        if not moe.tokens_choose:
            raise ConfigError(
                f"the model's router is {moe.router.name!r}, whose experts take as many tokens as "
                "their number leaves each; allowed: a router by which tokens choose, such as "
                "'top_k' or 'prototype'"
            )


def total_left(network: ModelConfig, total: int | None, share: float | None) -> int:
    """How many routed experts all layers together keep: so many, or all but this share, rounded to
    the nearer number.

    Raises:
      ConfigError: tokens need more, or there are fewer.
    """
    least = sum(map(least_experts, network.mixtures))
    most = sum(moe.num_experts for moe in network.mixtures)
    left = total if share is None else most - round(share * most)
    if left is None or not least <= left <= most:
        told = f"total is {total}" if share is None else f"share is {share}, which leaves {left}"
        raise ConfigError(
            f"{told} of the experts of all layers; allowed: {least} (each layer's top_k) to {most} "
            "(all)"
        )
    return left


def least_experts(moe: MoEConfig) -> int:
    """The least number of routed experts that tokens can choose from."""
    return max(moe.top_k - len(moe.cheap_experts), 1)


def with_fewer(model: Model, fewer: Sequence[Fewer], router: RouterMode) -> Done:
    """The model with fewer experts in its layers.

    Args:
      model: with mixtures that `check_mixtures` allows.
      fewer: for each MoE layer, in order.
      router: what becomes of the columns of those that are gone.

    Raises:
      ConfigError: a token would have too few experts, or the router has no such mode.
    """
    network = model.config.model
    told = {"experts": [[group.tolist() for group in layer.groups] for layer in fewer]}
    if all(len(f.groups) == m.num_experts for f, m in zip(fewer, network.mixtures, strict=True)):
        return Done(model, told)
    units, layers = units_of(network, model.parameters), iter(fewer)
    for number, unit in enumerate(units):
        if unit.segment.moe is not None:
            units[number] = _unit_with(network, unit, next(layers), router)
    return Done(model.of(*network_of(network, model.parameters, units)), told)


def _unit_with(network: ModelConfig, unit: Unit, fewer: Fewer, router: RouterMode) -> Unit:
    """The unit with these groups in place of its routed experts; the unconditional expert and cheap
    ones stay."""
    moe, number = unit.moe, len(fewer.groups)
    least = least_experts(moe)
    if number < least:
        raise ConfigError(
            f"a layer would keep {number} of its {moe.num_experts} experts; allowed: {least} "
            f"(top_k {moe.top_k}) to {moe.num_experts}"
        )
    if number == moe.num_experts and router == "drop":
        return unit
    if router == "drop":
        return _without_columns(network, unit, fewer.groups)
    return _with_columns(unit, fewer, router)


def _with_columns(unit: Unit, fewer: Fewer, mode: RouterMode) -> Unit:
    """The experts fewer, the router as it was."""
    moe, router = unit.moe, unit.moe.router
    start = f"{unit.mixture}experts."
    own = {k: v for k, v in unit.parameters.items() if k.startswith(unit.mixture)}
    kept = [*fewer.groups, *_own(moe.num_experts, moe.unconditional_expert)]
    own |= {k: _merged(v, kept, axis=0) for k, v in own.items() if k.startswith(start)}
    gone_E = fewer.stand_in < 0
    if mode == "remap" and gone_E.any():
        raise ValueError("no expert stands in for some")
    if mode == "mask":
        if not isinstance(router, BiasSettings):
            raise ConfigError(f"router {router.name!r} masks no experts; allowed: 'drop'")
        bias_E = own.get(f"{unit.mixture}router.bias", np.zeros(moe.scored_experts, np.float32))
        bias_E = bias_E.copy()
        bias_E[: moe.num_experts][gone_E] = _MASKED
        own[f"{unit.mixture}router.bias"] = bias_E
        if router.bias == "absent":
            router = dataclasses.replace(router, bias="sign", bias_rate=0.0)
    own[f"{unit.mixture}stand_in"] = np.maximum(fewer.stand_in, 0).astype(np.float32)
    number = len(fewer.groups)
    with_columns = dataclasses.replace(
        moe, router=router, num_experts=number, columns=moe.num_experts
    )
    return unit.of(with_columns, own)


def _without_columns(network: ModelConfig, unit: Unit, groups: Groups) -> Unit:
    """The experts fewer, and the router's columns likewise."""
    moe = unit.moe
    if moe.router.hands_on(moe):
        raise ConfigError(
            f"router {moe.router.name!r} hands its scores on to the next layer's, in their order; "
            "allowed: router=mask or router=remap"
        )
    try:
        fewer = dataclasses.replace(moe, num_experts=len(groups))
        shapes = unit_shapes(network, dataclasses.replace(unit.segment, moe=fewer))
    except pydantic.ValidationError as error:
        raise ConfigError(f"the model without experts: {describe(error, 'moe')}") from None
    # By the length of an axis of experts, what is left of it.
    axes = {
        moe.num_experts: groups,
        moe.scored_experts: [*groups, *_own(moe.num_experts, len(moe.cheap_experts))],
        moe.total_experts: [*groups, *_own(moe.num_experts, moe.unconditional_expert)],
    }
    taken = {}
    for name, value in unit.parameters.items():
        if not name.startswith(unit.mixture):
            continue
        for axis, (old, new) in enumerate(zip(value.shape, shapes[name], strict=True)):
            if old == new:
                continue
            if len(axes.get(old, ())) != new:
                raise ConfigError(
                    f"router {moe.router.name!r} has {name} of shape {value.shape}, whose width "
                    f"{old} follows the number of experts; allowed: router=mask or router=remap"
                )
            value = _merged(value, axes[old], axis)
        taken[name] = value
    return unit.of(fewer, taken)


def _own(first: int, number: int) -> Groups:
    """Those that follow the routed ones, each by itself."""
    return [np.array([first + i]) for i in range(number)]


def _merged(value: np.ndarray, groups: Groups, axis: int) -> np.ndarray:
    """What is left of an axis: single entries as they are, means of several."""
    if all(len(group) == 1 for group in groups):
        return np.take(value, np.concatenate(groups), axis=axis)
    parts = [np.take(value, group, axis=axis).mean(axis, np.float64) for group in groups]
    return np.stack(parts, axis=axis).astype(value.dtype)
