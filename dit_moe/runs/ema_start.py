"""The decay of the moving average by step, and what an average still owes to its start."""

import math

import jax
import jax.numpy as jnp

from dit_moe.config import TrainConfig

LARGE_SHARE = 0.05
"""Share of the start in an average, above which whoever uses it is told."""


def decay_of_step(config: TrainConfig, number: jax.Array) -> jax.Array | float:
    """The weight that the average of before keeps at a step.

    Args:
      config: of the run.
      number: of the step, int32 scalar; the first is 1.
    """
    if not config.ema_warmup:
        return config.ema_decay
    return jnp.minimum(config.ema_decay, (1 + number) / (10 + number))


def start_share(config: TrainConfig, steps: int) -> float:
    """The weight of a run's first parameters in its moving average after some steps, 1 to 0.

    It is the product of the decays of all steps. Updates that were skipped count as done.
    """
    decay, growing = config.ema_decay, 0
    if config.ema_warmup:
        # The steps t with (1 + t) / (10 + t) below the decay; their product telescopes.
        growing = min(steps, max(0, math.floor((10 * decay - 1) / (1 - decay))))
    after_growth = math.prod(k / (growing + k) for k in range(2, 11))
    return after_growth * decay ** (steps - growing)


def start_warning(config: TrainConfig, steps: int) -> str | None:
    """A sentence for whoever uses the moving average, where much of it still is its start."""
    share = start_share(config, steps)
    if share <= LARGE_SHARE:
        return None
    remedies = "more steps" if config.ema_warmup else "more steps, a lower decay or ema_warmup"
    return (
        f"The moving average of step {steps:,} still is {share:.0%} the parameters that the run "
        f"started from (train.ema_decay is {config.ema_decay}), so its samples may be noise; "
        f"--parameters raw takes the parameters themselves, and {remedies} mend the average."
    )
