"""Rectified flow: straight paths between data and noise (Liu et al. 2022).

z_t = (1 - t) x + t noise, from the data at t = 0 to noise at t = 1; the network predicts the
velocity dz/dt = noise - x.
"""

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.config import RectifiedFlowConfig
from dit_moe.diffusion.denoiser import Denoised, Denoiser, broadcast_time
from dit_moe.diffusion.objective import (
    Metrics,
    Network,
    mean_per_image,
    per_image,
    total_loss,
)
from dit_moe.models.prediction import Prediction

Times = TypeVar("Times", jax.Array, np.ndarray)


@dataclasses.dataclass(frozen=True)
class RectifiedFlow:
    """The objective, and its network as a denoiser for the solvers."""

    config: RectifiedFlowConfig

    def loss(
        self, network: Network, key_N: jax.Array, x_NxHxWxC: jax.Array, y_N: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, Prediction]]:
        """Mean squared error of the velocity; see `Objective.loss`."""
        time_key_N, noise_key_N = jax.vmap(jax.random.split, out_axes=1)(key_N)
        t_N = self.draw_times(time_key_N)
        shape = x_NxHxWxC.shape[1:]
        noise_NxHxWxC = jax.vmap(lambda key: jax.random.normal(key, shape))(noise_key_N)
        z_NxHxWxC = self.diffuse(x_NxHxWxC, t_N, noise_NxHxWxC)
        prediction = network(z_NxHxWxC, t_N * self.config.time_scale, y_N)
        error_NxHxWxC = prediction.value[..., : shape[-1]] - (noise_NxHxWxC - x_NxHxWxC)
        return total_loss({"mse": mean_per_image(error_NxHxWxC**2)}, t_N, prediction)

    def diffuse(self, x_NxHxWxC: jax.Array, t_N: jax.Array, noise_NxHxWxC: jax.Array) -> jax.Array:
        """z_t from data and noise."""
        t_Nx1x1x1 = per_image(t_N)
        return (1 - t_Nx1x1x1) * x_NxHxWxC + t_Nx1x1x1 * noise_NxHxWxC

    def draw_times(self, key_N: jax.Array) -> jax.Array:
        """Training times [N] in (0, 1): logit-normal(0, 1) or uniform, then shifted."""
        if self.config.time_distribution == "logit_normal":
            t_N = jax.nn.sigmoid(jax.vmap(jax.random.normal)(key_N))
        else:
            t_N = jax.vmap(jax.random.uniform)(key_N)
        return self.shift(t_N)

    def shift(self, t: Times) -> Times:
        """Moves times towards noise for larger images (Esser et al. 2024, eq. 23)."""
        s = self.config.shift
        return s * t / (1 + (s - 1) * t)

    def denoiser(self, network: Network) -> Denoiser:
        """The network, which predicts the velocity, as a denoiser."""

        def denoise(z_NxHxWxC: jax.Array, t: jax.Array, y_N: jax.Array) -> Denoised:
            t_N = jnp.broadcast_to(t, y_N.shape).astype(jnp.float32)
            value = network(z_NxHxWxC, t_N * self.config.time_scale, y_N).value
            channels = z_NxHxWxC.shape[-1]
            velocity, t = value[..., :channels], broadcast_time(t)
            return Denoised(
                clean=z_NxHxWxC - t * velocity,
                noise=z_NxHxWxC + (1 - t) * velocity,
                variance=value[..., :0],
            )

        return denoise

    @property
    def time_range(self) -> tuple[float, float]:
        """The times between which the network was trained: all."""
        return 0.0, 1.0

    def times(self, steps: int) -> np.ndarray:
        """Times [steps + 1] from 1 to 0, even before the shift."""
        return self.shift(np.linspace(1.0, 0.0, steps + 1)).astype(np.float32)
