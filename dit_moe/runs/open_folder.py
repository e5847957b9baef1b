"""The tensors of a model as an open folder has them: safetensors, and weights.json.

They have this package's names, one for each unit of blocks: "trunk.segments.0.3.blocks.0.
attention.qkv.kernel" is number 3 of the stack "trunk.segments.0.blocks.0.attention.qkv.kernel".
Of packed matrices the metadata of each file tell `bits`, of experts perhaps one by one, `group`,
`shape` and `order`, by name.
Above `SHARD_BYTES` the tensors lie in several files with an index, in the layout of the Hugging
Face hub.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from dit_moe.config import ConfigError, ModelConfig
from dit_moe.models.parameters import abstract_parameters, stack_of
from dit_moe.models.unpacking import PLACE, packed_kinds
from dit_moe.nn.packed import ORDER
from dit_moe.runs.checkpoint_files import INDEX, WEIGHTS, read_shards
from dit_moe.runs.sparse_tensors import filled, thinned
from dit_moe.runs.tensor_files import (
    StoredTensor,
    finite,
    read_metadata,
    read_safetensors,
    write_safetensors,
)
from dit_moe.runs.weights import write_weights
from dit_moe.storage.files import atomic
from dit_moe.storage.hub import reason

STORE = "store.json"
"""In the folder of a model whose experts lie apart, to be read while it draws (streaming/)."""
SHARD_BYTES = 5_000_000_000


def is_published(folder: Path) -> bool:
    """Whether a folder holds a model in this form."""
    return any((folder / name).is_file() for name in (WEIGHTS, INDEX))


def download(name: str) -> Path:
    """The local folder of a model on the Hugging Face hub, downloaded where it is not cached.

    Raises:
      ConfigError: it cannot be had.
    """
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name))
    except Exception as error:  # the client's errors have no common class, but one remedy
        raise ConfigError(
            f"{name!r} is no folder here and cannot be downloaded ({reason(error)}); by hand: put "
            f"the files of https://huggingface.co/{name}/tree/main into a folder, and pass that "
            "folder"
        ) from error


def write_tensors(
    folder: Path,
    parameters: Mapping[str, np.ndarray],
    model: ModelConfig,
    *,
    ema: bool,
    thin: bool = False,
) -> None:
    """Writes parameters by dotted path as `model.safetensors`, or as shards with an index.

    Args:
      folder: is there, and empty.
      parameters: all of a network.
      model: the network.
      ema: they are the moving average.
      thin: many zeros are stored as a mask (`sparse_tensors`).
    """
    tensors = stored_tensors(parameters, thin=thin)
    write_shards(folder, "model", tensors, form="dit_moe", metadata=_metadata(model))
    write_weights(folder, ema=ema, files=tuple(path.name for path in folder.iterdir()))


def stored_tensors(
    parameters: Mapping[str, np.ndarray], *, thin: bool = False
) -> dict[str, np.ndarray]:
    """What `write_tensors` writes, by the name of each tensor: one for each unit of blocks."""
    tensors = dict(_by_unit(parameters))
    return thinned(tensors) if thin else tensors


def write_shards(
    folder: Path,
    stem: str,
    tensors: Mapping[str, np.ndarray],
    *,
    form: str,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes tensors as `STEM.safetensors`, or as shards with an index, as the hub's clients do.

    Args:
      folder: is there.
      stem: what the names of the files begin with.
      tensors: by name.
      form: whose names they are; "pt" for what PyTorch's packages shall read.
      metadata: what else each of the files shall tell.
    """
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, array in tensors.items():
        if shards[-1] and size + array.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = array
        size += array.nbytes
    count = len(shards)
    names = [f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    if count == 1:
        names = [f"{stem}.safetensors"]
    for name, shard in zip(names, shards, strict=True):
        with atomic(folder / name) as temporary:
            write_safetensors(temporary, shard, form, metadata)
    if count > 1:
        total = sum(array.nbytes for array in tensors.values())
        shard_of = {key: name for name, s in zip(names, shards, strict=True) for key in s}
        index = {"metadata": {"total_size": total}, "weight_map": shard_of}
        with atomic(folder / f"{stem}.safetensors.index.json") as temporary:
            temporary.write_text(json.dumps(index, indent=2) + "\n")


def read_tensors(folder: Path, model: ModelConfig) -> dict[str, np.ndarray]:
    """Parameters by dotted path from a folder of `write_tensors`: float32, but for what is packed.

    Raises:
      ConfigError: the files are damaged, do not fit the model, or hold numbers that are not
        finite.
    """
    parameters = {
        path: np.empty(p.shape, p.dtype) for path, p in abstract_parameters(model).items()
    }
    for path, unit, tensor in read_each(folder, model):
        parameters[path][... if unit is None else unit] = tensor
    return parameters


def read_each(folder: Path, model: ModelConfig) -> Iterator[tuple[str, int | None, np.ndarray]]:
    """The same one tensor after another, sorted by path: path, unit of its stack (None: it is in
    none) and what lies there, a float of any size but for what is packed.

    Raises:
      ConfigError: as `read_tensors`.
    """
    sharded = (folder / INDEX).is_file()
    tensors: dict[str, StoredTensor] = (
        read_shards(folder / INDEX) if sharded else read_safetensors(folder / WEIGHTS)
    )
    parts = {
        name: (path, unit, p.shape if unit is None else p.shape[1:], p.dtype)
        for path, p in sorted(abstract_parameters(model).items())
        for name, unit in _unit_names(path, p.shape)
    }
    tensors = filled(tensors, {name: shape for name, (_, _, shape, _) in parts.items()})
    wrong = [
        name
        for name in {**parts, **tensors}
        if name not in parts
        or name not in tensors
        or parts[name][2] != tensors[name].shape
        or not _fits(tensors[name].dtype, parts[name][3])
    ]
    if wrong:
        raise ConfigError(
            f"the tensors in {folder} do not fit config.json: {wrong[0]} and {len(wrong) - 1:,} "
            "more are missing, unexpected, of another shape or of another type"
        )
    if model.packed:
        _check_metadata(folder, model)
    packed = packed_kinds(model)
    for name, (path, unit, _, _) in parts.items():
        tensor = finite(name, folder, np.asarray(tensors[name]))
        if path.endswith(PLACE) and path.removesuffix(PLACE) in packed:
            _check_places(name, folder, tensor)
        yield path, unit, tensor


def _fits(found: np.dtype, wanted: np.dtype) -> bool:
    """Whether a tensor's type will do: any float for float32, and its own for what is packed."""
    return found == wanted or (wanted == np.float32 and jnp.issubdtype(found, jnp.floating))


def _metadata(model: ModelConfig) -> dict[str, str]:
    """What is told of packed matrices, by the name that their tensors' names begin with."""
    if not model.packed:
        return {}
    told = {}
    for path, (kind, shape) in packed_kinds(model).items():
        for name, unit in _unit_names(path, shape):
            own = shape if unit is None else shape[1:]
            bits = list(kind.experts) or kind.bits
            told[name] = {"bits": bits, "group": kind.group, "shape": own}
            if kind.nested is not None:
                told[name] |= {"nested": kind.nested, "least": kind.least}
    return {"packed": json.dumps({"order": ORDER, "matrices": told})}


def _check_metadata(folder: Path, model: ModelConfig) -> None:
    found = read_metadata(next(folder.glob("*.safetensors"))).get("packed")
    if found != _metadata(model)["packed"]:
        raise ConfigError(
            f"{folder} has packed matrices, of which config.json (model.packed) tells otherwise "
            "than the files themselves; allowed: both as they were written"
        )


def _check_places(name: str, folder: Path, place_E: np.ndarray) -> None:
    if not np.array_equal(np.sort(place_E), np.arange(len(place_E))):
        raise ConfigError(
            f"{name} in {folder} gives experts the places {place_E.tolist()}; allowed: 0 to "
            f"{len(place_E) - 1}, each once, as they were written"
        )


def _by_unit(parameters: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Names and views of the single units' parameters."""
    for path, array in parameters.items():
        for name, unit in _unit_names(path, array.shape):
            yield name, array if unit is None else array[unit]


def _unit_names(path: str, shape: tuple[int, ...]) -> Iterator[tuple[str, int | None]]:
    """The names that a parameter's parts have, and their units."""
    stack = stack_of(path)
    if stack is None:
        yield path, None
    else:
        for unit in range(shape[0]):
            yield f"{stack}{unit}.{path.removeprefix(stack)}", unit
