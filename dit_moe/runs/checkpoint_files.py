"""Every tensor of a checkpoint: of safetensors or PyTorch's files, whole or in shards."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from dit_moe.config import ConfigError
from dit_moe.runs.tensor_files import DTYPES, StoredTensor, read_safetensors
from dit_moe.storage.pickles import load_pickle
from dit_moe.storage.records import read_json

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
# Of the hub's clients, in their order.
_IN_FOLDER = (INDEX, WEIGHTS, "pytorch_model.bin.index.json", "pytorch_model.bin")


def read_file(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a file, or of a folder's, under the whole of its name.

    Args:
      path: a `.safetensors` file, a `.pt`, `.pth`, `.bin` or `.ckpt` file of PyTorch, the index of
        shards of either, or a folder with one of these under the name that the hub's clients write.

    Raises:
      ConfigError: the file is missing, damaged or of another kind, would have to execute code to be
        read, or needs PyTorch where there is none.
    """
    if path.is_dir():
        for name in _IN_FOLDER:
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
    if path.suffix in PICKLES:
        return dict(_walk(load_pickle(path), ""))
    raise ConfigError(
        f"checkpoint is {str(path)!r}; allowed: .safetensors, {', '.join(PICKLES)}, or a folder "
        "of safetensors"
    )


def read_shards(index: Path) -> dict[str, StoredTensor]:
    """Every tensor of the shards of an index.

    Raises:
      ConfigError: the index or a shard is damaged or missing.
    """
    try:
        shard_of = read_json(index)["weight_map"]
        outside = [name for name in shard_of.values() if Path(name).name != name]
        if outside:
            raise ConfigError(f"{index} names {outside[0]!r}; allowed: files beside it")
        names = [name for name in set(shard_of.values()) if not name.endswith(".json")]
        shards = {name: read_file(index.parent / name) for name in names}
        return {name: shards[shard][name] for name, shard in shard_of.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{index} is no index of shards that are there: {type(error).__name__}: {error}"
        ) from None


def _walk(node: Any, prefix: str) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors of nested containers, by what leads to them with dots between."""
    import torch  # pyright: ignore[reportMissingImports]

    if isinstance(node, torch.Tensor):
        yield prefix, _stored(node.detach())
    elif isinstance(node, Mapping | list | tuple):
        parts = node.items() if isinstance(node, Mapping) else enumerate(node)
        for key, value in parts:
            yield from _walk(value, f"{prefix}.{key}" if prefix else str(key))


def _stored(tensor: Any) -> StoredTensor:
    import torch  # pyright: ignore[reportMissingImports]

    kind = str(tensor.dtype).removeprefix("torch.")
    plain = tensor.layout == torch.strided and kind in DTYPES.values()

    def read() -> np.ndarray:
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()

    return StoredTensor(tuple(tensor.shape), jnp.dtype(kind if plain else "int32"), read)
