"""Solvers: from noise to samples. Each is one scan over its steps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dit_moe.diffusion.ddpm import DDPM, Coefficients, ddim_timesteps, even_timesteps
from dit_moe.diffusion.objective import Network
from dit_moe.diffusion.rectified_flow import RectifiedFlow


def initial_noise(key_N: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal [N, *shape] float32, each image from its own key."""
    return step_noise(key_N, 0, shape)


def step_noise(key_N: jax.Array, number: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The number-th draw of every image."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), shape))(key_N)


def euler(
    flow: RectifiedFlow,
    network: Network,
    x: jax.Array,
    key_N: jax.Array,
    y_N: jax.Array,
    steps: int,
) -> jax.Array:
    """First order, one evaluation per step."""
    del key_N

    def step(x: jax.Array, times: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        t, t_next = times
        return x + (t_next - t) * flow.velocity(network, x, t, y_N), None

    return jax.lax.scan(step, x, _flow_steps(flow, steps))[0]


def heun(
    flow: RectifiedFlow,
    network: Network,
    x: jax.Array,
    key_N: jax.Array,
    y_N: jax.Array,
    steps: int,
) -> jax.Array:
    """Second order, two evaluations per step: the trapezoidal rule with an Euler predictor."""
    del key_N

    def step(x: jax.Array, times: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        t, t_next = times
        here = flow.velocity(network, x, t, y_N)
        there = flow.velocity(network, x + (t_next - t) * here, t_next, y_N)
        return x + (t_next - t) * (here + there) / 2, None

    return jax.lax.scan(step, x, _flow_steps(flow, steps))[0]


def ancestral(
    ddpm: DDPM, network: Network, x: jax.Array, key_N: jax.Array, y_N: jax.Array, steps: int
) -> jax.Array:
    """Samples p(x_{t-1} | x_t) step by step on evenly spaced timesteps (DDPM, algorithm 2)."""
    chain = ddpm.steps(even_timesteps(ddpm.config.timesteps, steps))

    def step(x: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        at = chain.at(index)
        mean, log_variance = ddpm.reverse(x, at, _evaluate(network, x, at, y_N))
        noise = step_noise(key_N, index + 1, x.shape[1:])
        return mean + jnp.where(index > 0, jnp.exp(log_variance / 2) * noise, 0), None

    return jax.lax.scan(step, x, jnp.arange(steps), reverse=True)[0]


def ddim(
    ddpm: DDPM, network: Network, x: jax.Array, key_N: jax.Array, y_N: jax.Array, steps: int
) -> jax.Array:
    """Deterministic, on strided timesteps (Song et al. 2021, eq. 12 with eta 0)."""
    del key_N
    chain = ddpm.steps(ddim_timesteps(ddpm.config.timesteps, steps))

    def step(x: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        at = chain.at(index)
        noise = _evaluate(network, x, at, y_N)[..., : x.shape[-1]]
        x_0 = ddpm.predict_x0(x, at, noise)
        return at.signal_previous * x_0 + at.noise_previous * noise, None

    return jax.lax.scan(step, x, jnp.arange(steps), reverse=True)[0]


FLOW_SOLVERS: dict[str, Callable[..., jax.Array]] = {"euler": euler, "heun": heun}
DDPM_SOLVERS: dict[str, Callable[..., jax.Array]] = {"ancestral": ancestral, "ddim": ddim}


def _flow_steps(flow: RectifiedFlow, steps: int) -> tuple[jax.Array, jax.Array]:
    """Start and end time of every step, from 1 to 0, even before the shift."""
    grid = flow.shift(jnp.linspace(1.0, 0.0, steps + 1))
    return grid[:-1], grid[1:]


def _evaluate(network: Network, x: jax.Array, at: Coefficients, y_N: jax.Array) -> jax.Array:
    return network(x, jnp.full(y_N.shape, at.timestep, jnp.float32), y_N).value
