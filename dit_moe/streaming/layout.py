"""What an expert store holds and where: store.json, and experts.bin that it tells of.

A store is a folder that can be drawn from: config.json, latents.json and classes.json as of an
open folder, rest.safetensors with all parameters but the experts, and experts.bin with these alone:
layer after layer in the order of the network, in a layer expert after expert, each a block of its
own.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
from pydantic import Field
from pydantic.dataclasses import dataclass

from dit_moe.config import ConfigError, ModelConfig, MoEConfig
from dit_moe.config.rules import RULES, NonNegativeInt, PositiveInt
from dit_moe.models.parameters import abstract_parameters, places
from dit_moe.models.unpacking import PLACE
from dit_moe.runs.open_folder import STORE
from dit_moe.runs.teacher import held_as
from dit_moe.storage.records import check_format, read_json, read_record

FORMAT = 1
ROUTED = "feed_forward.experts"
"""What the path of a layer ends with; that of a group of another kind does not."""
EXPERTS, REST = "experts.bin", "rest.safetensors"
DTYPES = ("float32", "bfloat16", "float16")
PAGE = 4096
"""Bytes of which blocks begin at multiples: pages of memory and sectors of disks divide them."""
WHOLE = jnp.dtype("float32")
"""The type of a network's parameters that are not packed."""
_LINE = 64  # bytes, to which tensors are aligned in a block

Crc = Annotated[int, Field(ge=0, lt=2**32)]


@dataclass(frozen=True, config=RULES)
class Leaf:
    """A tensor that every expert of a layer has."""

    name: str
    """Its path below that of the experts: "w_in", or of a packed one "w_in.codes"."""
    dtype: str
    shape: tuple[PositiveInt, ...]
    """Of a single expert."""

    @property
    def bytes(self) -> int:
        """Without what aligns it."""
        return math.prod(self.shape) * jnp.dtype(self.dtype).itemsize


@dataclass(frozen=True, config=RULES)
class Layer:
    """The experts of one layer; of several kinds, those of one of them."""

    path: str
    """What the paths of their parameters begin with: "trunk.segments.0.blocks.0.feed_forward.\
experts"."""
    unit: NonNegativeInt
    """Where in the stack of that path."""
    experts: PositiveInt
    leaves: tuple[Leaf, ...]
    crc32: tuple[Crc, ...] = ()
    """Of every expert's block."""

    @functools.cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where in a block the leaves begin, and where the last of them ends."""
        offsets = [0]
        for leaf in self.leaves:
            offsets.append(_up(offsets[-1] + leaf.bytes, _LINE))
        return tuple(offsets)

    @property
    def block(self) -> int:
        """Bytes of an expert in the file."""
        return _up(self.offsets[-1], PAGE)

    @property
    def bytes(self) -> int:
        """Of all experts in the file."""
        return self.experts * self.block


@dataclass(frozen=True, config=RULES)
class Store:
    """Kept as store.json."""

    format: int
    step: NonNegativeInt
    """Of the checkpoint that it was made of."""
    dtype: str
    """Of the experts' matrices, and of those of the blocks, which are not packed."""
    weights: str
    """SHA-256 of all parameters as they are stored."""
    layers: tuple[Layer, ...]

    @functools.cached_property
    def starts(self) -> tuple[int, ...]:
        """Where in experts.bin the layers begin, and where the last of them ends."""
        starts = [0]
        for layer in self.layers:
            starts.append(starts[-1] + layer.bytes)
        return tuple(starts)

    @property
    def bytes(self) -> int:
        """Of experts.bin."""
        return self.starts[-1]


def layers_of(model: ModelConfig, dtype: str) -> tuple[Layer, ...]:
    """The layers whose experts are stored, in the order of the network, without checksums.

    Experts that compute whole images (recurrent ones) are of the rest.

    Raises:
      ConfigError: experts of a layer have unlike bits, and so no block of one size.
    """
    stored, layers = stored_parameters(model, dtype), []
    for place in places(model):
        for path in _stacks(place.prefix, place.moe):
            own = {
                p.removeprefix(f"{path}."): like
                for p, like in stored.items()
                if p.startswith(f"{path}.")
            }
            if any(name.endswith(PLACE) for name in own):
                raise ConfigError(
                    "config.model.packed has experts of unlike bits (its field experts), whose "
                    "blocks in a store would be unlike; allowed: the same bits for all experts"
                )
            leaves = tuple(
                Leaf(name, str(like.dtype), like.shape[2:]) for name, like in own.items()
            )
            number = next(iter(own.values())).shape[1]
            layers.append(Layer(path, place.unit, number, leaves))
    return tuple(layers)


def stored_parameters(model: ModelConfig, dtype: str) -> dict[str, jax.ShapeDtypeStruct]:
    """All parameters of a network as they are stored, sorted by path: those of packed matrices as
    they are, others as `held_as` says.

    Args:
      model: the network.
      dtype: of the store.
    """
    return {
        path: jax.ShapeDtypeStruct(p.shape, held_as(path, dtype) if p.dtype == WHOLE else p.dtype)
        for path, p in sorted(abstract_parameters(model).items())
    }


def rest_parameters(model: ModelConfig, dtype: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Those of `stored_parameters` that are of no layer."""
    experts = tuple({f"{layer.path}." for layer in layers_of(model, dtype)})
    stored = stored_parameters(model, dtype)
    return {path: p for path, p in stored.items() if not path.startswith(experts)}


def _stacks(prefix: str, moe: MoEConfig | None) -> Iterator[str]:
    if moe is None:
        return
    yield f"{prefix}{ROUTED}"
    for number, group in enumerate(moe.unlike):
        if not group.facts.whole_images:
            yield f"{prefix}feed_forward.unlike.{number}"


def read_store(folder: Path, model: ModelConfig) -> Store:
    """Reads what a store holds.

    Raises:
      ConfigError: store.json cannot be read, or is not of this model; or experts.bin is missing or
        of another size.
    """
    path = folder / STORE
    found = read_json(path)
    number = found.get("format") if isinstance(found, dict) else None
    check_format(path, number, FORMAT, "make the store again")
    store = read_record(path, Store)
    if store.dtype not in DTYPES:
        raise ConfigError(f"{path} has dtype {store.dtype!r}; allowed: {', '.join(DTYPES)}")
    plain = tuple(dataclasses.replace(layer, crc32=()) for layer in store.layers)
    if plain != layers_of(model, store.dtype) or any(
        len(layer.crc32) != layer.experts for layer in store.layers
    ):
        raise ConfigError(f"{path} does not fit config.json beside it: make the store again")
    experts = folder / EXPERTS
    size = experts.stat().st_size if experts.is_file() else None
    if size != store.bytes:
        has = "is missing" if size is None else f"has {size:,} bytes"
        raise ConfigError(
            f"{experts} {has}, and {STORE} tells of {store.bytes:,}: copy or make the store again"
        )
    return store


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
