"""Several processes as one: who speaks, what all of them agree on, and how results come home.

Everything here is a plain local operation in a run of one process.
"""

import collections
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from dit_moe.config import ConfigError
from dit_moe.storage.images import NotFiniteError

_MESSAGE_BYTES = 4096
_DELAY = 2  # steps


def join(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Makes this process one of a distributed run; before anything else asks JAX for devices.

    Args:
      coordinator_address: HOST:PORT of process 0, reachable by all. With None for all three, JAX
        finds them in the environment of SLURM, Open MPI, a TPU pod or Kubernetes.
      num_processes: how many there are.
      process_id: which one this is.

    Raises:
      ConfigError: the address is none, or the processes do not find each other.
    """
    if coordinator_address is not None and ":" not in coordinator_address:
        raise ConfigError(
            f"coordinator_address is {coordinator_address!r}; allowed: HOST:PORT, such as node:1234"
        )
    try:
        jax.distributed.initialize(coordinator_address, num_processes, process_id)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"the processes of this run did not find each other ({reason}); allowed: --distributed "
            "under SLURM, Open MPI or on a TPU pod, else all of --coordinator_address HOST:PORT, "
            "--num_processes and --process_id"
        ) from error


def is_lead() -> bool:
    """Whether this is the process that prints, logs and writes."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints, once for all processes; what cannot be printed is lost."""
    if not is_lead():
        return
    # A log file on a full disk or a pipe that nobody reads any longer ends no training.
    with contextlib.suppress(OSError):
        tqdm.write(text)  # above a progress bar, where there is one
        sys.stdout.flush()


@contextlib.contextmanager
def surviving(what: str) -> Iterator[None]:
    """Tells of files that cannot be written: neither a full disk ends training, as long as the last
    checkpoint can be saved in the end, nor a bad sample."""
    try:
        yield
    except (OSError, NotFiniteError) as error:
        say(f"{what} could not be written: {error}")


def on_lead(action: Callable[[], object]) -> None:
    """Runs `action` in the lead process while the others wait.

    Raises:
      ConfigError: in all of several processes, if the action raises one, or an OSError.
      whatever else the action raises: in the lead, while the others raise a ConfigError. One
        process alone raises what the action does.
    """
    if jax.process_count() == 1:
        action()
        return
    message, unexpected = "", None
    if is_lead():
        try:
            action()
        except (ConfigError, OSError) as error:
            message = str(error) or repr(error)
        except Exception as error:
            message, unexpected = f"the lead process failed: {error!r}", error
    text = np.zeros(_MESSAGE_BYTES, np.uint8)
    encoded = np.frombuffer(message.encode()[:_MESSAGE_BYTES], np.uint8)
    text[: len(encoded)] = encoded
    text = np.asarray(multihost_utils.broadcast_one_to_all(text))
    if unexpected is not None:
        raise unexpected
    if text.any():
        raise ConfigError(bytes(text).rstrip(b"\0").decode(errors="replace"))


def any_process(here: bool) -> bool:
    """Whether it is so in any of the processes; all wait for each other."""
    if jax.process_count() == 1:
        return here
    return bool(multihost_utils.process_allgather(np.array(here)).any())


def fetch(tree: Any) -> Any:
    """Arrays spread over all devices as NumPy arrays, whole in every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


class Agreement:
    """The largest of the numbers that the processes give, the same for all at the same call.

    It travels with the training steps instead of stopping them, so among several processes the
    answer is about the call two before.
    """

    def __init__(self, mesh: Mesh):
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._max = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._pending: collections.deque[jax.Array] = collections.deque()

    def __call__(self, number: int) -> int:
        """Gives this process's number, an int32; every process must call as often."""
        if jax.process_count() == 1:
            return number
        mine = np.full(len(self._sharding.addressable_devices), number, np.int32)
        self._pending.append(
            self._max(jax.make_array_from_process_local_data(self._sharding, mine))
        )
        return int(self._pending.popleft()) if len(self._pending) > _DELAY else 0
