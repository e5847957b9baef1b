"""Dormand and Prince's Runge-Kutta method with steps as long as a tolerance allows."""

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.diffusion.denoiser import Denoiser, broadcast_time, mean_per_example
from dit_moe.diffusion.solvers.runge_kutta import slopes, tableau
from dit_moe.diffusion.solvers.steps import Solver

# Dormand & Prince 1980, RK5(4)7M. The last row of a is b: the last slope is that of the next step.
DORMAND_PRINCE = tableau(
    [
        [1 / 5],
        [3 / 40, 9 / 40],
        [44 / 45, -56 / 15, 32 / 9],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
        [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
    ],
    [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0],
)
_FOURTH_ORDER = np.array(
    [5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40]
)
_ERROR = DORMAND_PRINCE.b - _FOURTH_ORDER

_FIRST_STEP = 0.05
"""Share of the whole way that is tried first; the tolerance corrects it."""


def dopri5(tolerance: float, lowest: float = 0.0) -> Solver:
    """Order 5 with an estimate of order 4; every image has steps of its own.

    A step is accepted if the root mean square over an image of error / (tolerance (1 + |z|)) is at
    most 1, with the larger |z| of both ends. Of `times` only the ends count, and their number: an
    image gets as many attempts as there are steps. The last attempt goes to the end whatever its
    error, so that there is always an image, and says so. An attempt costs six evaluations, and the
    first slope one.

    Args:
      tolerance: relative to z, and absolute where |z| is below 1.
      lowest: as for `runge_kutta`.
    """

    def solver(
        denoiser: Denoiser, z: jax.Array, key_N: jax.Array, y_N: jax.Array, times: np.ndarray
    ) -> jax.Array:
        del key_N
        attempts = int((times[1:] >= lowest).sum())
        end = times[attempts]
        t_N = jnp.full(y_N.shape, times[0], z.dtype)
        length_N = jnp.full(y_N.shape, _FIRST_STEP * (times[0] - end), z.dtype)
        slope = denoiser(z, t_N, y_N).velocity
        missed_N = jnp.zeros(y_N.shape, bool)

        def unfinished(state: tuple[jax.Array, ...]) -> jax.Array:
            attempt, _, t_N, *_ = state
            return (attempt < attempts) & jnp.any(t_N > end)

        def attempt_step(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            attempt, z, t_N, length_N, slope, missed_N = state
            last = attempt == attempts - 1
            left_N = t_N - end
            length_N = jnp.where(last, left_N, jnp.minimum(length_N, left_N))
            found = slopes(DORMAND_PRINCE, denoiser, z, t_N, -length_N, y_N, first=slope)
            forward = -broadcast_time(length_N, z)
            z_next = z + forward * jnp.tensordot(jnp.asarray(DORMAND_PRINCE.b, z.dtype), found, 1)
            error = forward * jnp.tensordot(jnp.asarray(_ERROR, z.dtype), found, 1)
            scale = tolerance * (1 + jnp.maximum(jnp.abs(z), jnp.abs(z_next)))
            error_N = jnp.sqrt(mean_per_example(jnp.square(error / scale)))

            good_N = error_N <= 1  # false for NaN
            accepted_N = good_N | last
            taken = broadcast_time(accepted_N, z)
            growth_N = jnp.where(jnp.isfinite(error_N), 0.9 * error_N**-0.2, 0)
            return (
                attempt + 1,
                jnp.where(taken, z_next, z),
                jnp.where(accepted_N, jnp.where(length_N == left_N, end, t_N - length_N), t_N),
                length_N * jnp.clip(growth_N, 0.2, 10),
                jnp.where(taken, found[-1], slope),
                missed_N | (last & ~good_N),
            )

        state = (jnp.int32(0), z, t_N, length_N, slope, missed_N)
        _, z, t_N, _, slope, missed_N = jax.lax.while_loop(unfinished, attempt_step, state)
        jax.lax.cond(missed_N.any(), lambda: _say(missed_N.sum(), attempts), lambda: None)
        # Nothing is left of the way, or the part below `lowest`.
        return z + (times[-1] - end) * slope

    return solver


def _say(images: jax.Array, attempts: int) -> None:
    jax.debug.print(
        "dopri5 did not reach its tolerance for {images} images within {attempts} steps; "
        "more steps or a larger tolerance would.",
        images=images,
        attempts=attempts,
    )
