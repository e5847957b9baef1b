"""Modules and their variables by dotted path."""

from collections.abc import Mapping
from typing import TypeVar

import jax
from flax import nnx

M = TypeVar("M", bound=nnx.Module)


def variables(model: nnx.Module) -> dict[str, nnx.Variable]:
    """The parameters of a module, real or abstract, by dotted path."""
    return {
        _dotted(path): variable for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }


def bind(model: M, parameters: Mapping[str, jax.Array]) -> M:
    """A module like `model`, real or abstract, that computes with these parameters.

    Usable under jit and grad.
    """
    graphdef, state = nnx.split(model)
    flat = [
        (path, variable.replace(parameters[_dotted(path)]))
        for path, variable in nnx.to_flat_state(state)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path))
