"""The experts of a network in another order, and the router's rows with them.

What the network computes stays: a token has the same experts with the same weights. Where a gate
sums over the experts (softmax), or a token has three or more, that sum is of another order.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from dit_moe.config import ConfigError, ModelConfig, MoEConfig
from dit_moe.models.parameters import abstract_parameters, places
from dit_moe.surgery.interchangeable import check_interchangeable


def check_order_free(network: ModelConfig) -> None:
    """Checks that no mixture of a network cares which number its experts have.

    Raises:
      ConfigError: there is no mixture, or one that does, such as one of unlike experts.
    """
    check_interchangeable(network)
    for moe in dict.fromkeys(network.mixtures):
        router = f"the model's router is {moe.router.name!r}"
        if moe.router.chooser == "nobody":
            raise ConfigError(
                f"{router}, whose experts serve all tokens; allowed: a router that sends tokens to "
                "experts, such as 'top_k' or 'prototype'"
            )
        if moe.router.hands_on(moe):
            raise ConfigError(
                f"{router}, which hands its scores on to the next layer's, in their order; "
                "allowed: a router that hands on nothing (of 'mixed_top_k', gating_residual false)"
            )
        if moe.choice == "random":
            raise ConfigError(
                "the model's moe.choice is 'random', which draws an expert by its number; allowed: "
                "any other"
            )


def permuted(
    network: ModelConfig,
    parameters: Mapping[str, np.ndarray],
    orders: Sequence[np.ndarray],
) -> dict[str, np.ndarray]:
    """The parameters with the routed experts of every layer in another order.

    The unconditional expert and cheap ones keep their places, which are after the routed ones.

    Args:
      network: whose parameters they are, with mixtures that `check_order_free` allows.
      parameters: by dotted path.
      orders: of each MoE layer [E] int: which expert comes to each place.

    Returns:
      Copies of what changes; all else is shared.

    Raises:
      ConfigError: a mixture cares for the order, or a router has something of a width that follows
        the number of experts in another way than a row for each.
    """
    check_order_free(network)
    followers = dict(_followers(network))
    found = dict(parameters)
    for path in followers:
        found[path] = np.array(parameters[path])
    layers = iter(orders)
    for place in places(network):
        if place.moe is None:
            continue
        order_E = np.asarray(next(layers))
        for path, axes in followers.items():
            if path.startswith(place.prefix):
                for axis in axes:
                    found[path][place.unit] = _taken(found[path][place.unit], order_E, axis)
    return found


def _taken(value: np.ndarray, order_E: np.ndarray, axis: int) -> np.ndarray:
    beyond = np.arange(len(order_E), value.shape[axis])
    return np.take(value, np.concatenate([order_E, beyond]), axis=axis)


def _followers(network: ModelConfig) -> Iterator[tuple[str, list[int]]]:
    """The parameters that have something for each routed expert, and the axes on which, the stack's
    left out: those that grow by one where the mixtures have one expert more."""
    before, after = abstract_parameters(network), abstract_parameters(_grown(network))
    for path, p in before.items():
        grows = [new - old for old, new in zip(p.shape, after[path].shape, strict=True)]
        if any(grow not in (0, 1) for grow in grows):
            raise ConfigError(
                f"{path} has the shape {p.shape}, of which a width follows the number of experts; "
                "allowed: a router with a row of each"
            )
        axes = [axis - 1 for axis, grow in enumerate(grows) if grow]
        if axes:
            yield path, axes


def _grown(network: ModelConfig) -> ModelConfig:
    def grown(moe: MoEConfig | None) -> MoEConfig | None:
        return moe and dataclasses.replace(moe, num_experts=moe.num_experts + 1)

    segments = tuple(dataclasses.replace(s, moe=grown(s.moe)) for s in network.segments)
    return dataclasses.replace(network, moe=grown(network.moe), segments=segments)
