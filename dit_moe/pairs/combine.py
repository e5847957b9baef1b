"""Several models of pairs in one network, which draws one first image with a second one of each.

All have learnt beside the same model of single images, which stands in the network once (UniCon, Li
et al. 2024). In every block the first image finds something in each of the second ones, and has
their sum, each with a weight; each second image finds something in the first one alone.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from dit_moe.config import Config, ConfigError, PairsConfig
from dit_moe.config.pairs import CombinedPairsConfig
from dit_moe.models.parameters import Parameters, abstract_parameters
from dit_moe.models.patterns import matches
from dit_moe.pairs.start import LEARN

Member = tuple[Config, Parameters]


def combine(members: Sequence[Member], weights: Sequence[float], names: Sequence[str]) -> Member:
    """One model of pairs from several; of one with weight 1, itself.

    Args:
      members: config and parameters of each run on pairs.
      weights: for each, the factor of what the first image finds in its second image. With 0 for
        all, the first image is what the model of single images draws.
      names: of the runs, for messages.

    Raises:
      ConfigError: they have not the same model of single images beside what is for pairs.
    """
    (config, parameters), *others = members
    pairs = tuple(_pairs(member, name) for (member, _), name in zip(members, names, strict=True))
    combined = CombinedPairsConfig(
        rank=max(each.rank for each in pairs),
        adapt_second=any(each.adapt_second for each in pairs),
        models=pairs,
        weights=tuple(weights),
    )
    model = dataclasses.replace(config.model, pairs=combined)
    found = dict(parameters)
    for number, ((other, theirs), name) in enumerate(zip(others, names[1:], strict=True)):
        same = dataclasses.replace(other.model, pairs=config.model.pairs) == config.model
        differing = [p for p in _base(parameters) if not _equal(parameters[p], theirs.get(p))]
        if not same or other.objective != config.objective or differing:
            what = f"such as in {differing[0]}" if differing else "in config.json"
            raise ConfigError(
                f"others has {name!r}, whose model of single images is not that of {names[0]!r}, "
                f"{what}; allowed: runs that python -m dit_moe.pairs train started from one run"
            )
        found |= {_path(path, number): p for path, p in theirs.items() if matches(path, LEARN)}
    # A model without a condition for its second images, beside one that has it.
    for path, like in abstract_parameters(model).items():
        if path not in found:
            found[path] = jnp.zeros(like.shape, like.dtype)
    return dataclasses.replace(config, model=model), found


def _pairs(config: Config, name: str) -> PairsConfig:
    if config.model.pairs is None:
        raise ConfigError(
            f"workdir is {name!r}, whose model is of single images; allowed: a run of "
            "python -m dit_moe.pairs train"
        )
    return config.model.pairs


def _base(parameters: Parameters) -> list[str]:
    return [path for path in parameters if not matches(path, LEARN)]


def _equal(own: jnp.ndarray, other: jnp.ndarray | None) -> bool:
    return other is not None and np.array_equal(own, other)


def _path(path: str, number: int) -> str:
    """Where a parameter of the model after the first of this number lies in the combined one."""
    if path == "second_condition":
        return f"other_conditions.{number}"
    return path.replace(".joint.", f".others.{number}.")
