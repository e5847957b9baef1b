"""Modules whose parameters come from a flat dictionary."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
from flax import nnx

M = TypeVar("M", bound=nnx.Module)


def shapes(build: Callable[[], nnx.Module]) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by dotted path, without memory for them."""
    state = nnx.state(nnx.eval_shape(build), nnx.Param)
    return {_dotted(path): variable.shape for path, variable in nnx.to_flat_state(state)}


def bind(build: Callable[[], M], parameters: Mapping[str, jax.Array]) -> M:
    """The module that `build` makes, computing with these parameters; usable under jit."""
    graphdef, state = nnx.split(nnx.eval_shape(build))
    flat = [
        (path, variable.replace(parameters[_dotted(path)]))
        for path, variable in nnx.to_flat_state(state)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path))
