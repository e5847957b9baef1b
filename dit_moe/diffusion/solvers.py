"""Solvers: from noise to samples along z = (1 - t) x_0 + t noise, each one scan over its steps."""

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.diffusion.ddpm import DDPM, even_timesteps
from dit_moe.diffusion.denoiser import Denoiser, unit_variance


def step_noise(key_N: jax.Array, number: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The number-th draw of every image: standard normal [N, *shape] float32, from its own key."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), shape))(key_N)


def euler(
    denoiser: Denoiser, z: jax.Array, key_N: jax.Array, y_N: jax.Array, times: np.ndarray
) -> jax.Array:
    """First order, one evaluation per step.

    On this path it is DDIM without noise (Song et al. 2021, eq. 12 with eta 0): a step keeps the
    predicted noise and x_0, and moves to where less of the one and more of the other is in z.
    """
    del key_N

    def step(z: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        t, t_next = at
        return z + (t_next - t) * denoiser(z, t, y_N).velocity, None

    return jax.lax.scan(step, z, (jnp.asarray(times[:-1]), jnp.asarray(times[1:])))[0]


def heun(
    denoiser: Denoiser, z: jax.Array, key_N: jax.Array, y_N: jax.Array, times: np.ndarray
) -> jax.Array:
    """Second order, two evaluations per step: the trapezoidal rule with an Euler predictor."""
    del key_N

    def step(z: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        t, t_next = at
        here = denoiser(z, t, y_N).velocity
        there = denoiser(z + (t_next - t) * here, t_next, y_N).velocity
        return z + (t_next - t) * (here + there) / 2, None

    return jax.lax.scan(step, z, (jnp.asarray(times[:-1]), jnp.asarray(times[1:])))[0]


def ancestral(
    ddpm: DDPM, denoiser: Denoiser, x: jax.Array, key_N: jax.Array, y_N: jax.Array, steps: int
) -> jax.Array:
    """Samples p(x_{t-1} | x_t) step by step on evenly spaced timesteps (DDPM, algorithm 2)."""
    visited = even_timesteps(ddpm.config.timesteps, steps)
    chain, times = ddpm.steps(visited), ddpm.path_times()[visited]

    def step(x: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        index, t = at
        denoised = denoiser(x / unit_variance(t), t, y_N)
        value = jnp.concatenate([denoised.noise, denoised.variance], axis=-1)
        mean, log_variance = ddpm.reverse(x, chain.at(index), value)
        noise = step_noise(key_N, index + 1, x.shape[1:])
        return mean + jnp.where(index > 0, jnp.exp(log_variance / 2) * noise, 0), None

    return jax.lax.scan(step, x, (jnp.arange(steps), jnp.asarray(times)), reverse=True)[0]


ODE_SOLVERS = {"euler": euler, "ddim": euler, "heun": heun}
