"""The memory of the hosts, as far as devices read and write it."""

from collections.abc import Sequence
from typing import Any

from dit_moe.config import ConfigError, TrainConfig

HOST_MEMORY = "pinned_host"
"""JAX's name of the kind of memory."""


def check_memory_kinds(train: TrainConfig, devices: Sequence[Any]) -> None:
    """Checks that devices reach the memory of their hosts, where the config keeps state there.

    Raises:
      ConfigError: they do not.
    """
    kind = devices[0].device_kind
    asked = [name for name in ("averages_on_host", "moments_on_host") if getattr(train, name)]
    kinds = [memory.kind for memory in devices[0].addressable_memories()]
    if asked and HOST_MEMORY not in kinds:
        raise ConfigError(
            f"config.train.{asked[0]} is true on {kind!r}, which knows the memory "
            f"{', '.join(kinds)}, not {HOST_MEMORY}; allowed: false there"
        )
