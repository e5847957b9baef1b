"""Explicit Runge-Kutta methods on the probability flow dz/dt = velocity, with fixed steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.diffusion.denoiser import Denoiser, broadcast_time
from dit_moe.diffusion.solvers.steps import Solver, over_steps


@dataclasses.dataclass(frozen=True)
class Tableau:
    """A Butcher tableau: slope i is taken at z + dt sum_j a[i, j] slope_j, t + c[i] dt."""

    a: np.ndarray
    """[stages, stages] float64, strictly lower triangular."""
    b: np.ndarray
    """[stages] float64: the weights of the slopes in the step."""

    @property
    def c(self) -> np.ndarray:
        """[stages] float64: where in the step the slopes are taken."""
        return self.a.sum(axis=1)


def tableau(rows: list[list[float]], b: list[float]) -> Tableau:
    """From the rows of a, without their zeros; the first, empty row is left out."""
    stages = len(b)
    padded = [[*row, *[0.0] * (stages - len(row))] for row in ([], *rows)]
    return Tableau(np.array(padded), np.array(b))


HEUN = tableau([[1]], [1 / 2, 1 / 2])
MIDPOINT = tableau([[1 / 2]], [0, 1])
RK4 = tableau([[1 / 2], [0, 1 / 2], [0, 0, 1]], [1 / 6, 1 / 3, 1 / 3, 1 / 6])


def slopes(
    method: Tableau,
    denoiser: Denoiser,
    z: jax.Array,
    t: jax.Array,
    dt: jax.Array,
    y_N: jax.Array,
    *,
    first: jax.Array | None = None,
    stages: int | jax.Array | None = None,
) -> jax.Array:
    """The slopes of a step: [stages, N, ..., C]. The network is compiled once for all of them.

    Args:
      method: whose slopes.
      denoiser: gives them.
      z: [N, ..., C] at the step's start.
      t: time there, one for all examples or [N].
      dt: length of the step, negative, shaped as t.
      y_N: labels.
      first: the first slope, if it is known.
      stages: how many slopes to compute; the others are 0.
    """
    a, c = jnp.asarray(method.a, z.dtype), jnp.asarray(method.c, z.dtype)
    found = jnp.zeros((len(method.b), *z.shape), z.dtype)
    if first is not None:
        found = found.at[0].set(first)

    def stage(i: jax.Array, found: jax.Array) -> jax.Array:
        z_i = z + broadcast_time(dt, z) * jnp.tensordot(a[i], found, 1)
        return found.at[i].set(denoiser(z_i, t + c[i] * dt, y_N).velocity)

    last = len(method.b) if stages is None else stages
    return jax.lax.fori_loop(0 if first is None else 1, last, stage, found)


def runge_kutta(method: Tableau, lowest: float = 0.0) -> Solver:
    """The method with a fixed grid of steps.

    Args:
      method: its tableau.
      lowest: the least time that the network was trained for. It is not asked below, so a step
        that ends there is Euler's: it goes to the predicted clean image.
    """

    def solver(
        denoiser: Denoiser, z: jax.Array, key_N: jax.Array, y_N: jax.Array, times: np.ndarray
    ) -> jax.Array:
        del key_N
        euler = times[1:] < lowest
        stages_S = np.where(euler, 1, len(method.b))
        weight_SxK = np.where(euler[:, None], np.eye(len(method.b))[0], method.b)

        def step(
            z: jax.Array, t: jax.Array, t_next: jax.Array, stages: jax.Array, weight_K: jax.Array
        ) -> jax.Array:
            dt = t_next - t
            found = slopes(method, denoiser, z, t, dt, y_N, stages=stages)
            return z + dt * jnp.tensordot(weight_K, found, 1)

        return over_steps(step, z, times, stages_S, weight_SxK)

    return solver
