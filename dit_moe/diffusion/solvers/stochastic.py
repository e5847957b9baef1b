"""Solvers that may add noise: DDIM, the reverse stochastic equation, and DDPM's own chain."""

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.diffusion.ddpm import DDPM, even_timesteps
from dit_moe.diffusion.denoiser import Denoiser, unit_variance
from dit_moe.diffusion.solvers.steps import Solver, over_steps, step_noise


def ddim(eta: float, repeats: int = 1) -> Solver:
    """DDIM (Song et al. 2021, eq. 12 and 16), one evaluation per step.

    A step keeps the predicted x_0 and noise, and moves to where less of the one and more of the
    other is in z. With eta 0 it is Euler's method on this path. With eta, part of the noise is
    drawn anew: its deviation is eta t' sqrt(1 - (sigma' / sigma)^2), where sigma = t / (1 - t) and
    ' marks the step's end. With eta 1 it is DDPM's chain with the smaller variance.

    With repeats, each step is done so often (Nair et al. 2023, Steered Diffusion): in between, z at
    the step's end gets noise as the path has it, back to the step's start (`noised_again`). What is
    not steered keeps its distribution.

    Args:
      eta: 0 to 1.
      repeats: 1 or more.
    """

    def solver(
        denoiser: Denoiser, z: jax.Array, key_N: jax.Array, y_N: jax.Array, times: np.ndarray
    ) -> jax.Array:
        t, t_next = (np.asarray(part, np.float64) for part in (times[:-1], times[1:]))
        share = np.square(t_next * (1 - t) / (t * (1 - t_next)))
        kept_S = t_next * np.sqrt(1 - eta**2 * (1 - share))
        drawn_S = eta * t_next * np.sqrt(1 - share)

        def step(
            z: jax.Array,
            t: jax.Array,
            t_next: jax.Array,
            number: jax.Array,
            kept: jax.Array,
            drawn: jax.Array,
        ) -> jax.Array:
            denoised = denoiser(z, t, y_N)
            z = (1 - t_next) * denoised.clean + kept * denoised.noise
            return z + drawn * step_noise(key_N, number, z.shape[1:]) if eta else z

        def repeated(
            z: jax.Array,
            t: jax.Array,
            t_next: jax.Array,
            number: jax.Array,
            kept: jax.Array,
            drawn: jax.Array,
        ) -> jax.Array:
            def once(turn: jax.Array, z: jax.Array) -> jax.Array:
                # Draws of their own, behind those of the steps.
                draw = len(times) + 2 * (number * repeats + turn)
                z = step(z, t, t_next, draw, kept, drawn)
                noise = step_noise(key_N, draw + 1, z.shape[1:])
                return noised_again(z, t_next, t, noise)

            z = jax.lax.fori_loop(0, repeats - 1, once, z)
            return step(z, t, t_next, number, kept, drawn)

        return over_steps(
            step if repeats == 1 else repeated, z, times, 1 + np.arange(len(t)), kept_S, drawn_S
        )

    return solver


def noised_again(z: jax.Array, t: jax.Array, t_before: jax.Array, noise: jax.Array) -> jax.Array:
    """z at time t as it may have been at t_before, which is later on the way to noise: the path's
    own noise from the one to the other."""
    kept = (1 - t_before) / (1 - t)
    return kept * z + jnp.sqrt(jnp.square(t_before) - jnp.square(kept * t)) * noise


euler = ddim(0)
"""First order, one evaluation per step."""


def euler_maruyama(
    denoiser: Denoiser, z: jax.Array, key_N: jax.Array, y_N: jax.Array, times: np.ndarray
) -> jax.Array:
    """The reverse stochastic equation of the path, by Euler and Maruyama (Ma et al. 2024, SiT).

    dz = (velocity - w / 2 score) dt + sqrt(w) dW, backwards in time, has the probability flow's
    marginals for any w(t). Here w = t, SiT's "sigma" form, and score = -noise / t: the drift is
    velocity + noise / 2, finite everywhere. The last step is Euler's, to the predicted x_0,
    without noise.
    """

    def step(z: jax.Array, t: jax.Array, t_next: jax.Array, number: jax.Array) -> jax.Array:
        denoised = denoiser(z, t, y_N)
        dt, last = t_next - t, number == len(times) - 1
        drift = denoised.velocity + jnp.where(last, 0, denoised.noise / 2)
        deviation = jnp.where(last, 0, jnp.sqrt(-t * dt))
        return z + dt * drift + deviation * step_noise(key_N, number, z.shape[1:])

    return over_steps(step, z, times, np.arange(1, len(times)))


def ancestral(
    ddpm: DDPM, denoiser: Denoiser, x: jax.Array, key_N: jax.Array, y_N: jax.Array, steps: int
) -> jax.Array:
    """Samples p(x_{t-1} | x_t) step by step on evenly spaced timesteps (DDPM, algorithm 2)."""
    visited = even_timesteps(ddpm.config.sampled_timesteps, steps)
    chain, times = ddpm.steps(visited), ddpm.path_times()[visited]

    def step(x: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        index, t = at
        denoised = denoiser(x / unit_variance(t), t, y_N)
        value = jnp.concatenate([denoised.noise, denoised.variance], axis=-1)
        mean, log_variance = ddpm.reverse(x, chain.at(index), value)
        noise = step_noise(key_N, index + 1, x.shape[1:])
        return mean + jnp.where(index > 0, jnp.exp(log_variance / 2) * noise, 0), None

    return jax.lax.scan(step, x, (jnp.arange(steps), jnp.asarray(times)), reverse=True)[0]
