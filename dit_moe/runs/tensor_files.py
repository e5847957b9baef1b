"""Tensors by name, read one at a time, and the safetensors files that hold them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save_file

from dit_moe.config import ConfigError

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The float types that are read, by their names in safetensors."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, read by `np.asarray`."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(), dtype)


def finite(name: str, place: object, tensor: np.ndarray) -> np.ndarray:
    """The tensor, of a network that can compute something.

    Raises:
      ConfigError: a number in it is not finite; the message has its name, and whose it is.
    """
    if not np.isfinite(tensor).all():
        raise ConfigError(
            f"{name} of {place} holds numbers that are not finite; allowed: weights of a network "
            "whose training did not fail"
        )
    return tensor


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file.

    Raises:
      ConfigError: the file is damaged or has a type that is not known here.
    """

    def reader(name: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            # Opened anew for every tensor: what a mapping has touched counts as memory in use.
            with safetensors.safe_open(path, framework="numpy") as file:
                return file.get_tensor(name)

        return read

    tensors = {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 -- it is no dictionary
                view = file.get_slice(name)
                kind = view.get_dtype()
                # Whatever else there is, it is no float and no bytes.
                dtype = jnp.dtype(DTYPES.get(kind, "uint8" if kind == "U8" else "int32"))
                tensors[name] = StoredTensor(tuple(view.get_shape()), dtype, reader(name))
    except (safetensors.SafetensorError, OSError) as error:
        raise ConfigError(f"{path} is not a whole safetensors file: {error}") from None
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file that can be read tells of itself."""
    with safetensors.safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


def write_safetensors(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    form: str,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes tensors by name.

    Args:
      path: of the file.
      tensors: by name.
      form: whose names they are: "pt" for PyTorch's packages.
      metadata: what else the file shall tell of itself.

    Raises:
      OSError: the file cannot be written.
    """
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    try:
        save_file(whole, path, metadata={"format": form, **(metadata or {})})
    except safetensors.SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from None
