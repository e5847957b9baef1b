"""What a command sets for its own process before it begins, by way of C's allocator and JAX.

Nobody else's process is changed: importing the package, and calling it from Python, leaves all of
this alone. Nothing here needs JAX to be imported.
"""

import ctypes
import os
import platform
import sys
import zlib
from collections.abc import MutableMapping
from pathlib import Path

ACCELERATORS = ("/dev/nvidia0", "/dev/kfd", "/dev/accel0", "/dev/vfio/0")
CACHE_SIZE = 2 * 2**30
"""Bytes of compiled programs that are kept; the ones not used for longest go first."""

# malloc.h
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def hold_memory(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Keeps freed memory instead of giving it back to the kernel; returns whether it does.

    XLA takes what a program needs on the way from C's allocator at each call. glibc gives blocks
    of that size back at once, and the next call pays for each page anew: a third of the processor
    time of a train step of DiT-MoE-S/2-8E2A (`python -m benchmarks.train_step`). Where there is an
    accelerator, another allocator than glibc's, or the user has set glibc's by the environment,
    all stays as it is.
    """
    here = environment.get("JAX_PLATFORMS") == "cpu" or not any(map(os.path.exists, ACCELERATORS))
    chosen = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in environment)
    if not here or chosen or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # One arena: those of threads take large blocks from the kernel whatever the other two say.
    # No threshold of an int is large enough; -1 is malloc's word for never.
    settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: -1}
    return all(libc.mallopt(option, value) == 1 for option, value in settings.items())


def give_back() -> None:
    """Gives what is free now back to the kernel, whether or not it is kept (`hold_memory`)."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def keep_programs(environment: MutableMapping[str, str] = os.environ) -> None:
    """Lets JAX keep compiled programs from one command to the next, in the user's cache folder.

    Where the environment names another folder, that is taken as it is. A folder for each kind of
    processor: a program for one may hold instructions that another lacks, and a home may be shared.
    """
    if "JAX_COMPILATION_CACHE_DIR" in environment:
        return
    root = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "dit_moe" / f"programs-{zlib.crc32(_processor()):08x}"
    environment["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    environment.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(CACHE_SIZE))


def keep_no_programs(environment: MutableMapping[str, str] = os.environ) -> None:
    """Lets JAX neither read nor write compiled programs, whatever else was set."""
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    if "jax" in sys.modules:  # it has read the environment
        sys.modules["jax"].config.update("jax_enable_compilation_cache", False)


def _processor() -> bytes:
    """What tells kinds of processors apart: model and instructions where Linux tells."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().partition(b"\n\n")[0].splitlines()
    except OSError:
        return platform.processor().encode()
    return b"\n".join(
        line for line in lines if line.startswith((b"model name", b"flags", b"Features"))
    )
