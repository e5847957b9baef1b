"""Whether the machine's own memory can hold what a run keeps, where its CPU is the device."""

import os

import jax

from dit_moe.config import ConfigError
from dit_moe.plan.estimate import Estimate

_STATE = ("parameters", "EMA", "optimizer")


def check_host_memory(plan: Estimate) -> None:
    """Checks a run on CPU before it begins: it would fill memory for minutes, and then be killed.

    Accelerators refuse at once themselves.

    Raises:
      ConfigError: the state alone, which is counted exactly, is more than the machine has.
    """
    if jax.default_backend() != "cpu":
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    each = plan.host_bytes + sum(plan.parts[name] for name in _STATE)
    needed = jax.local_device_count() * each
    if needed > memory:
        raise ConfigError(
            f"config.model needs {needed / 1e9:,.4g} GB for parameters, averages and optimizer; "
            f"allowed: the {memory / 1e9:,.4g} GB that this machine has, so a smaller model or "
            "more machines"
        )
