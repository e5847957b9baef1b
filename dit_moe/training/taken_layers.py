"""A run that starts from some of the blocks of a deeper, or shallower, model."""

from collections.abc import Sequence

import jax.numpy as jnp

from dit_moe.config import ConfigError, ModelConfig
from dit_moe.models.parameters import Parameters, abstract_parameters, places, stack_of


def check_layers(layers: Sequence[int], old: ModelConfig, new: ModelConfig) -> None:
    """Checks that the blocks of a model can become those of another one.

    Args:
      layers: for each block of the new model, which block of the old one it is, from 0.
      old: the model that there is.
      new: the model of the run.

    Raises:
      ConfigError: there are more or fewer than the new model has, there is no such block, or one
        has another feed-forward or mixture.
    """
    if len(layers) != new.depth:
        raise ConfigError(
            f"init_layers has {len(layers)} blocks; allowed: config.model.depth {new.depth}"
        )
    before = list(places(old))
    for number, (layer, place) in enumerate(zip(layers, places(new), strict=True)):
        if layer >= len(before):
            raise ConfigError(
                f"init_layers has {layer}; allowed: 0 to {len(before) - 1}, the blocks of the "
                "model to start from"
            )
        if before[layer].moe != place.moe:
            raise ConfigError(
                f"init_layers has {layer} for block {number}, which has another feed-forward or "
                "mixture; allowed: a block of the same kind (model.moe.every)"
            )


def take_layers(
    parameters: Parameters, layers: Sequence[int], old: ModelConfig, new: ModelConfig
) -> Parameters:
    """The parameters of the new model from those of the old one; pure. See `check_layers`."""
    before, after = list(places(old)), list(places(new))
    taken: Parameters = {}
    for path in abstract_parameters(new):
        if stack_of(path) is None:
            taken[path] = parameters[path]
            continue
        prefix = next(place.prefix for place in after if path.startswith(place.prefix))
        name = path.removeprefix(prefix)
        units = [
            parameters[before[layer].prefix + name][before[layer].unit]
            for layer, place in zip(layers, after, strict=True)
            if place.prefix == prefix
        ]
        taken[path] = jnp.stack(units)
    return taken
