"""The way of images from noise to data, step by step, so that every state can be looked at."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.diffusion.ddpm import DDPM, Coefficients
from dit_moe.diffusion.objective import Network
from dit_moe.diffusion.rectified_flow import RectifiedFlow
from dit_moe.nn.prediction import Prediction


def guided(network: Network, scale: float, null_label: int) -> Network:
    """Classifier-free guidance in one pass of twice the batch: labels first, then null labels."""

    def both_ways(x: jax.Array, t_N: jax.Array, y_N: jax.Array) -> Prediction:
        y_2N = jnp.concatenate([y_N, jnp.full_like(y_N, null_label)])
        both = network(jnp.concatenate([x, x]), jnp.concatenate([t_N, t_N]), y_2N)
        conditional, unconditional = jnp.split(both.value, 2)
        value = unconditional + scale * (conditional - unconditional)
        return Prediction(value=value, routing=None, losses={})

    return both_ways


def schedule(
    objective: DDPM | RectifiedFlow, steps: int
) -> tuple[np.ndarray, Sequence[Coefficients | tuple[np.float32, np.float32]]]:
    """Places in the time range at which the network is asked, from noise on, and each step's
    arguments of `move`."""
    if isinstance(objective, DDPM):
        timesteps = objective.config.timesteps
        visited = np.arange(steps) * timesteps // steps  # as DDIM, appendix D.2
        chain = objective.steps(visited)
        places = range(steps - 1, -1, -1)
        return (visited[::-1] + 1) / timesteps, [chain.at(jnp.asarray(i)) for i in places]
    t = np.asarray(objective.shift(jnp.linspace(1.0, 0.0, steps + 1)), np.float32)
    return t[:-1], list(itertools.pairwise(t))


def move(
    objective: DDPM | RectifiedFlow,
    network: Network,
    x: jax.Array,
    argument: Coefficients | tuple[jax.Array, jax.Array],
    y_N: jax.Array,
) -> jax.Array:
    """One step of Euler, or of DDIM without noise (Song et al. 2021, eq. 12)."""
    if isinstance(objective, DDPM):
        assert isinstance(argument, Coefficients)
        t_N = jnp.full(y_N.shape, argument.timestep)
        noise = network(x, t_N, y_N).value[..., : x.shape[-1]]
        clean = objective.predict_x0(x, argument, noise)
        return argument.signal_previous * clean + argument.noise_previous * noise
    assert isinstance(argument, tuple)
    t, t_next = argument
    t_N = jnp.full(y_N.shape, t * objective.config.time_scale)
    return x + (t_next - t) * network(x, t_N, y_N).value[..., : x.shape[-1]]
