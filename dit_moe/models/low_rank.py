"""Low-rank additions to the matrices of a network (`train.lora`; Hu et al. 2021).

They are parameters by dotted path like any other, two beside that of a matrix: `PATH.lora_a`
[..., D, rank] and `PATH.lora_b` [..., rank, G] for PATH [..., D, G], with leading axes for the
units of a stack and for experts. The network computes with W + (alpha / rank) a b, made once a
step: it knows nothing of them.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from dit_moe.config import ConfigError, LowRankConfig, ModelConfig
from dit_moe.models.dit import DiT
from dit_moe.models.parameters import (
    Parameters,
    abstract_parameters,
    functional,
    logical_axes,
    stack_of,
)
from dit_moe.models.patterns import check_patterns, matches

T = TypeVar("T")
A, B = ".lora_a", ".lora_b"
Axes = dict[str, tuple[str | None, ...]]


def is_addition(path: str) -> bool:
    """Whether a path is that of a part of an addition, and not one of the network's."""
    return path.endswith((A, B))


def matrices_of(parameters: Mapping[str, object]) -> set[str]:
    """The paths of the network's matrices that have additions."""
    return {path.removesuffix(A) for path in parameters if path.endswith(A)}


def shapes_and_axes(
    model: ModelConfig, lora: LowRankConfig | None
) -> tuple[dict[str, jax.ShapeDtypeStruct], Axes]:
    """All parameters that a run keeps by path, the network's and the additions, without memory for
    them, and the logical names of their axes (see `parameters.logical_axes`).

    Raises:
      ConfigError: a pattern of `train.lora` matches nothing that can have an addition.
    """
    shapes, axes = abstract_parameters(model), logical_axes(model)
    if lora is None:
        return shapes, axes
    matrices = [path for path in shapes if is_matrix(path, axes[path])]
    check_patterns("config.train.lora.patterns", lora.patterns, matrices, "matrix")
    check_patterns("config.train.lora.whole", lora.whole, list(shapes), "parameter")
    chosen = [path for path in matrices if matches(path, lora.patterns)]
    twice = [path for path in chosen if matches(path, lora.whole)]
    if twice:
        raise ConfigError(
            f"config.train.lora has {twice[0]} both in patterns and in whole; allowed: one of them"
        )
    for path in chosen:
        (*leading, d, g), (*names, of_d, of_g) = shapes[path].shape, axes[path]
        if lora.rank > min(d, g):
            raise ConfigError(
                f"config.train.lora.rank is {lora.rank} for {path}, a matrix of {d} x {g}; "
                f"allowed: 1 to {min(d, g)}, or other patterns"
            )
        dtype = shapes[path].dtype
        shapes[path + A] = jax.ShapeDtypeStruct((*leading, d, lora.rank), dtype)
        shapes[path + B] = jax.ShapeDtypeStruct((*leading, lora.rank, g), dtype)
        axes[path + A], axes[path + B] = (*names, of_d, None), (*names, None, of_g)
    return shapes, axes


def is_matrix(path: str, axes: tuple[str | None, ...]) -> bool:
    """Whether a parameter with these logical axes is a matrix, or a stack of them."""
    own = len(axes) - (stack_of(path) is not None) - ("expert" in axes)
    return own >= 2


def init_additions(model: ModelConfig, lora: LowRankConfig | None, key: jax.Array) -> Parameters:
    """Additions of nothing: a from Kaiming's uniform distribution, b of zeros; pure."""
    shapes, _ = shapes_and_axes(model, lora)
    additions: Parameters = {}
    for path, like in shapes.items():
        if path.endswith(A):
            key, own = jax.random.split(key)
            bound = like.shape[-2] ** -0.5
            additions[path] = jax.random.uniform(own, like.shape, like.dtype, -bound, bound)
        elif path.endswith(B):
            additions[path] = jnp.zeros(like.shape, like.dtype)
    return additions


def split_additions(
    parameters: Mapping[str, T], lora: LowRankConfig
) -> tuple[dict[str, T], dict[str, T]]:
    """Parameters that learn (the additions, and what `whole` names), and those that do not."""
    learning = {
        path: p for path, p in parameters.items() if is_addition(path) or matches(path, lora.whole)
    }
    return learning, {path: p for path, p in parameters.items() if path not in learning}


def merge(parameters: Parameters, lora: LowRankConfig | None) -> Parameters:
    """The network's parameters, with the additions in their matrices; pure."""
    if lora is None:
        return parameters
    merged = {path: p for path, p in parameters.items() if not is_addition(path)}
    for path in matrices_of(parameters):
        a, b = parameters[path + A], parameters[path + B]
        # Accelerators would round the factors.
        product = jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
        merged[path] += lora.alpha / lora.rank * product
    return merged


merge_on_devices = jax.jit(merge, static_argnums=1)
"""`merge` in one program, wherever the parameters lie."""


def functional_merged(
    model: ModelConfig, lora: LowRankConfig | None
) -> Callable[[Parameters], DiT]:
    """The network from the parameters that a run with these additions keeps; for a run without, as
    `parameters.functional`."""
    bind = functional(model)
    return lambda parameters: bind(merge(parameters, lora))
