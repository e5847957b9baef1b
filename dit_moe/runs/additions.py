"""Low-rank additions apart from the model that they are for: a folder of config.json, lora.json,
lora.safetensors, weights.json, latents.json, classes.json.

The tensors have the names of the run's own parameters (models/low_rank.py), stacked as there: the
additions, and whatever else is not the base's any longer, such as embeddings of other classes.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from pydantic.dataclasses import dataclass

from dit_moe.config import Config, ConfigError
from dit_moe.config.rules import RULES
from dit_moe.models.low_rank import is_addition, shapes_and_axes
from dit_moe.runs.tensor_files import finite, read_safetensors, write_safetensors
from dit_moe.runs.weights import write_weights
from dit_moe.storage.files import atomic
from dit_moe.storage.records import read_record, write_record

_RECORD, _TENSORS = "lora.json", "lora.safetensors"


@dataclass(frozen=True, config=RULES)
class Base:
    """The model that additions are for; kept with them as lora.json."""

    base: str
    """Its folder, from the root, or its name on the Hugging Face hub."""
    fingerprints: dict[str, int] = dataclasses.field(default_factory=dict)
    """Of each of its parameters by path (runs/fingerprint.py)."""


def holds_additions(folder: Path) -> bool:
    """Whether a folder holds additions apart from their base."""
    return (folder / _RECORD).is_file()


def write_additions(
    folder: Path, tensors: Mapping[str, np.ndarray], base: Base, *, ema: bool
) -> None:
    """Writes lora.json, lora.safetensors and their digests.

    Args:
      folder: is there.
      tensors: what the base lacks, or has otherwise, by path.
      base: the model that they are for.
      ema: they are the moving average.
    """
    with atomic(folder / _TENSORS) as temporary:
        write_safetensors(temporary, tensors, form="dit_moe")
    write_record(folder / _RECORD, base)
    write_weights(folder, ema=ema, files=(_TENSORS,))


def read_base(folder: Path) -> Base:
    """The model that the additions in a folder are for.

    Raises:
      ConfigError: lora.json is damaged.
    """
    return read_record(folder / _RECORD, Base)


def read_additions(folder: Path, config: Config) -> dict[str, np.ndarray]:
    """The tensors of a folder of additions by path, float32.

    Raises:
      ConfigError: they are damaged, do not fit the config, or are not finite.
    """
    shapes, _ = shapes_and_axes(config.model, config.train.lora)
    tensors = read_safetensors(folder / _TENSORS)
    missing = [path for path in shapes if is_addition(path) and path not in tensors]
    wrong = [
        path
        for path, tensor in tensors.items()
        if path not in shapes
        or shapes[path].shape != tensor.shape
        or not jnp.issubdtype(tensor.dtype, jnp.floating)
    ]
    if missing or wrong or config.train.lora is None:
        name = [*missing, *wrong, "config.train.lora"][0]
        raise ConfigError(
            f"the tensors in {folder} do not fit config.json: {name} is missing, unexpected, of "
            "another shape or no floats"
        )
    return {
        path: finite(path, folder, np.asarray(tensor, np.float32))
        for path, tensor in tensors.items()
    }


def check_base(folder: Path, base: Base, name: str, found: Mapping[str, int]) -> None:
    """Checks by its fingerprints that a model is the base of a folder's additions.

    Raises:
      ConfigError: it is another, or is not what it was.
    """
    other = [
        path
        for path in {**base.fingerprints, **found}
        if base.fingerprints.get(path) != found.get(path)
    ]
    if other:
        raise ConfigError(
            f"{folder} holds additions to another model than {name!r}: {len(other):,} of its "
            f"parameters differ, such as {other[0]}; allowed in base of {folder / _RECORD}: the "
            "folder of the model, as it was, that the run started from"
        )
