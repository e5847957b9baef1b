"""A router before the trunk."""

from pydantic.dataclasses import dataclass

from dit_moe.config.rules import RULES, PositiveFloat, PositiveInt


@dataclass(frozen=True, config=RULES)
class PregateConfig:
    """One router that decides for all MoE layers before the first of them runs (Read-ME, Cai et
    al. 2024): a transformer block over patches, time and label, and on it what `moe.router` says.
    """

    heads: PositiveInt = 4
    """Of the block, each as wide as one of the model's: its width is so many times that."""
    mlp_ratio: PositiveFloat = 1.0
    """Hidden width of its feed-forward over its width."""
