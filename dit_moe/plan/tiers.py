"""What training takes of devices, hosts and disks where experts move between the three.

The formulas of SE-MoE (Shen et al. 2022, arXiv 2205.10034), for Adam in mixed precision, where D
parameters are dense, S of experts in L layers, and the share a of the experts is in use at a time:

    devices  16 D + 4 a S / L    two bytes each for parameter and gradient, twelve for the state
    hosts    16 a S              the experts in use, the same of each
    disks    12 S                parameter and moments of all experts in float32

This package keeps the state on devices and hosts (`train.moments_on_host`): the table tells what
the scheme would save.
"""

from dataclasses import dataclass

from dit_moe.config import ConfigError, ModelConfig
from dit_moe.models.parameter_counts import parameter_counts


@dataclass(frozen=True)
class Tiers:
    """Bytes, of all machines together."""

    devices: float
    hosts: float
    disks: float


def tiers(model: ModelConfig, in_use: float) -> Tiers:
    """The formulas.

    Args:
      model: with mixtures.
      in_use: a, above 0 and at most 1.

    Raises:
      ConfigError: the model has no experts, or `in_use` is another number.
    """
    if not 0 < in_use <= 1:
        raise ConfigError(
            f"tiers is {in_use:g}; allowed: the share of the experts in use at a time, above 0 and "
            "at most 1"
        )
    if not model.mixtures:
        raise ConfigError("tiers is given for a model without experts; allowed: one with mixtures")
    counts = parameter_counts(model)
    dense, sparse = counts.total - counts.routed, counts.routed
    return Tiers(
        devices=16 * dense + 4 * in_use * sparse / len(model.mixtures),
        hosts=16 * in_use * sparse,
        disks=12 * sparse,
    )


def told(model: ModelConfig, in_use: float) -> str:
    """The table, in Markdown.

    Raises:
      ConfigError: see `tiers`.
    """
    found = tiers(model, in_use)
    return "\n".join(
        [
            "| memory of all | formula (SE-MoE) | GB |",
            "|---|---|---|",
            f"| devices | 16 D + 4 a S / L | {found.devices / 1e9:.2f} |",
            f"| hosts | 16 a S | {found.hosts / 1e9:.2f} |",
            f"| disks | 12 S | {found.disks / 1e9:.2f} |",
        ]
    )
