"""What the benchmarks share: timing in turns, the matmul peak, and peak memory of a process."""

import math
import os
import platform
import re
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

_PEAK = re.compile(r"VmHWM:\s+(\d+) kB")

Timed = Callable[[], object]


def fastest(contestants: Mapping[str, Timed], repeats: int | Mapping[str, int]) -> dict[str, float]:
    """Seconds of each contestant's fastest repeat, all timed in turns after a first call.

    So a machine that is busy for a while disturbs all alike.
    """
    for run in contestants.values():
        run()
    count = repeats if isinstance(repeats, Mapping) else dict.fromkeys(contestants, repeats)
    best = dict.fromkeys(contestants, math.inf)
    for turn in range(max(count.values())):
        for name, run in contestants.items():
            if turn < count[name]:
                start = time.perf_counter()
                run()
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def spent(run: Timed) -> tuple[float, int]:
    """Processor seconds of a call, of all threads, and the pages that it had to be given anew."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    run()
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, after.ru_minflt - before.ru_minflt


MATMUL_SIDE = 2048
MATMUL_FLOPS = 2 * MATMUL_SIDE**3


def square_matmul(dtype: str = "float32") -> Timed:
    """One large square product, `MATMUL_FLOPS` operations: the peak that others are measured by."""
    a = jax.random.normal(jax.random.key(0), (MATMUL_SIDE, MATMUL_SIDE)).astype(dtype)
    matmul = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(matmul(a, a))


def peak_rss() -> int:
    """Bytes of resident memory that this process has had at most (Linux)."""
    found = _PEAK.search(Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 2**10


class Watched(NamedTuple):
    """What a process did."""

    code: int
    said: str
    """On both streams."""
    seconds: float
    peak: int
    """Bytes of resident memory that it has had at most."""


def watched(command: Sequence[str]) -> Watched:
    """Runs a command as a process and looks at its memory meanwhile (Linux)."""
    peak, start = 0, time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        while process.poll() is None:
            # It has none between its end and the next look.
            found = _PEAK.search(Path(f"/proc/{process.pid}/status").read_text())
            peak = max(peak, int(found[1]) * 2**10 if found else 0)
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        said.seek(0)
        return Watched(process.returncode, said.read(), seconds, peak)


def machine() -> str:
    """Processor or accelerator, cores and versions, on one line."""
    device = jax.devices()[0]
    name = device.device_kind
    if device.platform == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        name = f"{cores} cores, {platform.machine()}"
    return f"{name}; Python {platform.python_version()}, JAX {jax.__version__}"
