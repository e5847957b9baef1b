"""Tensors of a checkpoint by name, read one at a time: safetensors, or PyTorch's own files."""

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save_file

from dit_moe.config import ConfigError

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# What torch.compile and PyTorch's FSDP insert anywhere in a name.
_INSERTED = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# Every network of the families has it; what stands before it is how the set was wrapped.
_LANDMARK = "x_embedder.proj.weight"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, read by `np.asarray`."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(), dtype)


def read_checkpoint(
    path: Path, which: Literal["ema", "raw"] | None = None
) -> dict[str, StoredTensor]:
    """The tensors of one network of a checkpoint, by name, without what wraps the names.

    A checkpoint may hold the network alone, or under names such as "ema", "model", "module" and
    "state_dict", nested or as prefixes. What names "ema" is the moving average.

    Args:
      path: a `.safetensors` file, a folder with `model.safetensors` or its shards, the index of
        shards, or a `.pt`, `.pth`, `.bin` or `.ckpt` file of PyTorch.
      which: the moving average or the parameters; None takes the average where there is one.

    Raises:
      ConfigError: the file is missing, damaged, of another kind or without such a network, would
        have to execute code to be read, or needs PyTorch where there is none.
    """
    return _choose(path, _unwrap(read_file(path)), which)


def read_file(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a file, or of a folder's, under the whole of its name.

    Raises:
      ConfigError: as `read_checkpoint`.
    """
    if path.is_dir():
        for name in (INDEX, WEIGHTS):
            if (path / name).is_file():
                return read_file(path / name)
        raise ConfigError(
            f"checkpoint is {str(path)!r}, a folder without {WEIGHTS}; allowed: one with it or "
            f"with {INDEX} and its shards, or a file"
        )
    if not path.is_file():
        raise ConfigError(f"checkpoint is {str(path)!r}, which does not exist")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix == ".json":
        return read_shards(path)
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        return _read_torch(path)
    raise ConfigError(
        f"checkpoint is {str(path)!r}; allowed: .safetensors, .pt, .pth, .bin, .ckpt, or a folder "
        "of safetensors"
    )


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
                dtype = jnp.dtype(_DTYPES.get(kind, "int32" if kind[0] in "IUB" else "uint8"))
                tensors[name] = StoredTensor(tuple(view.get_shape()), dtype, reader(name))
    except (safetensors.SafetensorError, OSError) as error:
        raise ConfigError(f"{path} is not a whole safetensors file: {error}") from None
    return tensors


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], form: str) -> None:
    """Writes tensors by name, with `form` as whose names they are: "pt" for PyTorch's packages.

    Raises:
      OSError: the file cannot be written.
    """
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    try:
        save_file(whole, path, metadata={"format": form})
    except safetensors.SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from None


def read_shards(index: Path) -> dict[str, StoredTensor]:
    """Every tensor of the shards of an index.

    Raises:
      ConfigError: the index or a shard is damaged or missing.
    """
    try:
        shard_of = json.loads(index.read_text())["weight_map"]
        shards = {name: read_safetensors(index.parent / name) for name in set(shard_of.values())}
        return {name: shards[shard][name] for name, shard in shard_of.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{index} is no index of shards that are there: {type(error).__name__}: {error}"
        ) from None


def _read_torch(path: Path) -> dict[str, StoredTensor]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            f"{path} needs PyTorch to be read: pip install torch --index-url "
            "https://download.pytorch.org/whl/cpu; .safetensors files need nothing"
        ) from None
    import argparse

    try:
        # The peers' training scripts keep their command line beside the weights; it is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(
                path,
                map_location="cpu",
                weights_only=True,
                mmap=zipfile.is_zipfile(path),  # not possible in PyTorch's format before 1.6
            )
    except Exception as error:
        # PyTorch's own message is a page long and tells how to execute the file after all.
        raise ConfigError(
            f"{path} is damaged, or holds more than tensors, which is refused because reading it "
            f"can execute code ({type(error).__name__})"
        ) from None

    def stored(tensor: Any) -> StoredTensor:
        kind = str(tensor.dtype).removeprefix("torch.")
        dtype = jnp.dtype(kind if kind in _DTYPES.values() else "int32")

        def read() -> np.ndarray:
            return (tensor.float() if tensor.is_floating_point() else tensor).numpy()

        return StoredTensor(tuple(tensor.shape), dtype, read)

    def walk(node: Any, prefix: str) -> Iterator[tuple[str, StoredTensor]]:
        if isinstance(node, torch.Tensor):
            yield prefix, stored(node.detach())
        elif isinstance(node, Mapping):
            for key, value in node.items():
                yield from walk(value, f"{prefix}.{key}" if prefix else str(key))

    return dict(walk(content, ""))


def _unwrap(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    unwrapped = {}
    for name, tensor in tensors.items():
        for inserted in _INSERTED:
            name = name.replace(inserted, "")
        unwrapped[name] = tensor
    return unwrapped


def _choose(
    path: Path, tensors: Mapping[str, StoredTensor], which: Literal["ema", "raw"] | None
) -> dict[str, StoredTensor]:
    prefixes = [name.removesuffix(_LANDMARK) for name in tensors if name.endswith(_LANDMARK)]
    if not prefixes:
        shown = ", ".join(list(tensors)[:3]) or "nothing"
        raise ConfigError(
            f"{path} holds no diffusion transformer of these families: no {_LANDMARK} among its "
            f"{len(tensors):,} tensors ({shown}, ...)"
        )
    averages = [prefix for prefix in prefixes if "ema" in prefix.lower()]
    others = [prefix for prefix in prefixes if prefix not in averages]
    wanted = averages if which == "ema" else others if which == "raw" else averages or others
    if len(prefixes) == 1 and prefixes == [""]:
        wanted = [""]  # a network alone does not tell which it is
    if len(wanted) != 1:
        names = ", ".join(repr(prefix.rstrip(".")) for prefix in prefixes)
        found = "more than one network" if wanted else f"no {which} parameters"
        raise ConfigError(f"{path} holds {found}: its networks are {names}")
    (prefix,) = wanted
    # A network may lie within another's names, as "net.ema." in "net.".
    elsewhere = tuple(p for p in prefixes if p != prefix and p.startswith(prefix))
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix) and not name.startswith(elsewhere)
    }
