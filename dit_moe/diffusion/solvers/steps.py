"""What all solvers share: their type, the loop over steps, and the random draws."""

from collections.abc import Callable
from typing import TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.diffusion.denoiser import Denoiser

Carry = TypeVar("Carry")

Solver: TypeAlias = Callable[
    [Denoiser, jax.Array, jax.Array, jax.Array, np.ndarray],
    jax.Array,
]
"""From a denoiser, z [N, ..., C] at times[0], keys [N], labels [N] and times [steps + 1], strictly
descending, to z at times[-1]. Pure; an example depends on its own z, key and label alone."""


def step_noise(key_N: jax.Array, number: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Every example's number-th draw: standard normal [N, *shape] float32, from its own key."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), shape))(key_N)


def over_steps(
    step: Callable[..., Carry], start: Carry, times: np.ndarray, *tables: np.ndarray
) -> Carry:
    """step(carry, t, t_next, row of every table) for each step, as one scan."""
    rows = tuple(jnp.asarray(table) for table in (times[:-1], times[1:], *tables))
    return jax.lax.scan(lambda carry, row: (step(carry, *row), None), start, rows)[0]
