"""How long a run trains: steps, or as many as tokens or FLOPs pay for."""

import dataclasses
from collections.abc import Callable
from typing import Any

from dit_moe.config import Config, ConfigError
from dit_moe.config.rules import MAX_SIZE
from dit_moe.plan.training_flops import training_flops

UNITS: dict[str, Callable[[Config], float]] = {
    "steps": lambda config: 1.0,
    "images": lambda config: config.train.batch_size,
    "tokens": lambda config: config.train.batch_size * config.model.num_tokens,
    "flops": lambda config: config.train.batch_size * training_flops(config.model, config.train),
}
"""What a step takes of each."""


def with_budget(config: Config, unit: str, amount: Any) -> Config:
    """The config with the number of steps that comes nearest to the budget.

    The warm-up keeps its share of the steps.

    Args:
      config: of the run, but for its steps.
      unit: one of `UNITS`.
      amount: of it.

    Raises:
      ConfigError: the budget is no positive number, or pays for no step or for too many.
    """
    if unit not in UNITS:
        raise ConfigError(f"budget.{unit} is not a budget; allowed: {', '.join(UNITS)}")
    if isinstance(amount, bool) or not isinstance(amount, int | float) or amount <= 0:
        raise ConfigError(f"budget.{unit} is {amount!r}; allowed: a number above 0")
    of_a_step = UNITS[unit](config)
    steps = round(min(amount / of_a_step, 2 * MAX_SIZE))
    if not 1 <= steps <= MAX_SIZE:
        raise ConfigError(
            f"budget.{unit} is {amount:g}, and a step takes {of_a_step:g}; allowed: what pays for "
            f"1 to {MAX_SIZE} steps"
        )
    share = config.train.warmup_steps / config.train.steps
    train = dataclasses.replace(config.train, steps=steps, warmup_steps=int(share * steps))
    return dataclasses.replace(config, train=train)
