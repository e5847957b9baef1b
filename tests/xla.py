"""Flags of XLA for the tests."""

import os
import subprocess
import sys

FLAGS = [
    # The sharded code paths need several devices.
    "--xla_force_host_platform_device_count=8",
    # Most of the suite's time is compilation, which is faster without optimisation.
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",  # until JAX 0.11
    # Concurrent collectives of eight virtual devices can wait for each other on few cores.
    "--xla_cpu_enable_concurrency_optimized_scheduler=false",
]


def known(flags: list[str]) -> list[str]:
    """Those that the installed XLA has: it ends a process on any other, and names them all."""
    probe = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env={**os.environ, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    return [flag for flag in flags if flag not in probe.stderr]


def with_devices(number: int) -> str:
    """The suite's XLA_FLAGS for a process that has so many devices."""
    others = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    return " ".join([*others, f"--xla_force_host_platform_device_count={number}"])
