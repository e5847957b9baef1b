"""What a moving average still owes to the parameters that it started from."""

from dit_moe.config import TrainConfig

LARGE_SHARE = 0.1
"""Share of the start in an average, above which its samples suffer."""


def start_share(config: TrainConfig, steps: int) -> float:
    """The weight of a run's first parameters in its moving average after some steps, 1 to 0."""
    return config.ema_decay**steps


def start_warning(config: TrainConfig, steps: int) -> str | None:
    """A sentence for whoever uses the moving average, where much of it still is its start."""
    share = start_share(config, steps)
    if share <= LARGE_SHARE:
        return None
    return (
        f"The moving average of step {steps:,} still is {share:.0%} the parameters that the run "
        f"started from (train.ema_decay is {config.ema_decay}), so its samples may be noise; "
        "--parameters raw takes the parameters themselves, and more steps or a lower decay mend "
        "the average."
    )
