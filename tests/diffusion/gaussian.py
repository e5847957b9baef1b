"""Data N(MEAN, DEVIATION^2): what a perfect network says, and where the flow leads."""

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.config import DDPMConfig, RectifiedFlowConfig
from dit_moe.diffusion.denoiser import Denoiser
from dit_moe.diffusion.integrate import build_objective
from dit_moe.models.prediction import Prediction

MEAN, DEVIATION = 0.7, 0.3
FLOW = build_objective(RectifiedFlowConfig())
DDPM = build_objective(DDPMConfig())


def parts(z, t):
    """The expectations of x_0 and of the noise, given z at flow times t, scalar or [N]."""
    t = jnp.reshape(t, (-1, *[1] * (z.ndim - 1)))
    centred = (z - (1 - t) * MEAN) / ((1 - t) ** 2 * DEVIATION**2 + t**2)
    return MEAN + (1 - t) * DEVIATION**2 * centred, t * centred


def flow_network(z, t, y):
    clean, noise = parts(z, t)
    return Prediction(value=noise - clean, routing=None, losses={})


def ddpm_network(x, timestep, y):
    # Between timesteps the objective interpolates the flow time; this is the way back.
    times = DDPM.path_times()
    t = jnp.interp(timestep, np.arange(len(times), dtype=np.float32), times)
    scale_N = jnp.sqrt((1 - t) ** 2 + t**2)
    scale = jnp.reshape(scale_N, (-1, *[1] * (x.ndim - 1)))
    return Prediction(value=parts(x * scale, t)[1], routing=None, losses={})


DENOISERS: dict[str, Denoiser] = {
    "rectified_flow": FLOW.denoiser(flow_network),
    "ddpm": DDPM.denoiser(ddpm_network),
}
OBJECTIVES = {"rectified_flow": FLOW, "ddpm": DDPM}


def along_the_flow(noise: jax.Array | np.ndarray, t: float) -> jax.Array | np.ndarray:
    """z at time t of the trajectory that has this noise at t = 1."""
    return (1 - t) * MEAN + np.sqrt((1 - t) ** 2 * DEVIATION**2 + t**2) * noise
