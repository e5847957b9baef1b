"""A store opened to draw from: what is kept in memory of it, and how much memory there is."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from dit_moe.config import ConfigError, ModelConfig
from dit_moe.config.own_process import give_back
from dit_moe.models.parameters import Parameters
from dit_moe.runs.loading import check_exported
from dit_moe.runs.open_folder import STORE
from dit_moe.runs.tensor_files import read_safetensors
from dit_moe.runs.weights import check_weights
from dit_moe.streaming.bank import Source
from dit_moe.streaming.layout import EXPERTS, REST, Store, read_store, rest_parameters
from dit_moe.streaming.reader import Reader
from dit_moe.streaming.ring import Block, Ring, least_bytes

RESERVE = 128 * 2**20
"""Bytes of a budget that are left to what cannot be counted before: results on their way to the
disk, and what XLA and Python take between programs."""

_UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class OpenStore:
    """What is drawn from."""

    folder: Path
    store: Store
    rest: Parameters
    """All parameters that are no experts', on the first local device, in the types in which they
    are stored."""
    source: Source
    """Of the experts; without a ring yet."""

    def fill(
        self, budget: int, *, order: Sequence[Block] | None = None, ahead: bool = True
    ) -> Ring:
        """Gives the source a ring of so many bytes, or of all that it could use; see `Ring`.

        Raises:
          ConfigError, OSError: as of `Ring`.
        """
        reader = Reader(self.folder / EXPERTS, self.store)
        budget = min(budget, self.store.bytes)
        ring = Ring(reader, self.store, budget, order=order, ahead=ahead)
        self.source.ring = ring
        return ring


def is_store(folder: Path) -> bool:
    """Whether a folder holds a model whose experts are apart."""
    return (folder / STORE).is_file()


def open_store(
    folder: Path, model: ModelConfig, *, ema: bool, checkpoint: str = "newest"
) -> OpenStore:
    """Opens a store, and reads what is no expert.

    Args:
      folder: of the store.
      model: of the config in it.
      ema: the moving average is asked for rather than the parameters; a store has one of them.
      checkpoint: "newest", which is the only one.

    Raises:
      ConfigError: something in it is missing, damaged or other than asked for.
    """
    check_exported(folder, checkpoint)
    store = read_store(folder, model)
    check_weights(folder, ema=ema)
    tensors = read_safetensors(folder / REST)
    wanted = {
        path: (like.shape, like.dtype) for path, like in rest_parameters(model, store.dtype).items()
    }
    found = {path: (tensor.shape, tensor.dtype) for path, tensor in tensors.items()}
    if found != wanted:
        raise ConfigError(f"{folder / REST} does not fit config.json: make the store again")
    rest = {path: jnp.asarray(np.asarray(tensor)) for path, tensor in tensors.items()}
    return OpenStore(folder, store, rest, Source(store))


def memory_bytes(text: str) -> int:
    """Bytes of a text such as 4GB, 500MB or 3.5GiB.

    Raises:
      ConfigError: it is another.
    """
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?(MB|GB|MiB|GiB)", text.strip())
    if match is None:
        raise ConfigError(
            f"memory is {text!r}; allowed: a number with MB, GB, MiB or GiB, such as 4GB"
        )
    return int(float(match[1]) * _UNITS[match[2]])


def resident_bytes() -> int:
    """What this process needs of the machine's memory now."""
    give_back()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def experts_budget(memory: int | None, store: Store, program: int) -> int:
    """The bytes that are left for experts.

    Args:
      memory: that the process may hold; None: as much as all experts take.
      store: of the experts.
      program: bytes that the compiled network will take while it runs, experts excepted.

    Raises:
      ConfigError: they are too few for two layers.
    """
    if memory is None:
        return store.bytes
    taken = resident_bytes() + program + RESERVE
    if memory - taken < least_bytes(store):
        least = taken + least_bytes(store)
        raise ConfigError(
            f"memory is {memory / 1e9:.3g} GB; allowed: {-(-least // 10**7) / 100:.2f} GB or more, "
            f"of which {taken / 1e9:.2f} GB are the network without its experts and what computes "
            f"with it (less with a smaller batch_size), and {least_bytes(store) / 1e9:.2g} GB two "
            "layers of experts"
        )
    return memory - taken
