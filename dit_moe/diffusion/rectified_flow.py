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
from dit_moe.diffusion.denoiser import Denoised, Denoiser, broadcast_time, mean_per_example
from dit_moe.diffusion.objective import Metrics, Network, total_loss
from dit_moe.models.prediction import Prediction

Times = TypeVar("Times", jax.Array, np.ndarray)


@dataclasses.dataclass(frozen=True)
class RectifiedFlow:
    """The objective, and its network as a denoiser for the solvers."""

    config: RectifiedFlowConfig

    def loss(
        self, network: Network, key_N: jax.Array, x: jax.Array, y_N: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, Prediction]]:
        """Mean squared error of the velocity; see `Objective.loss`."""
        time_key_N, noise_key_N = jax.vmap(jax.random.split, out_axes=1)(key_N)
        t_N = self.draw_times(time_key_N)
        shape = x.shape[1:]
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(noise_key_N)
        z = self.diffuse(x, t_N, noise)
        prediction = network(z, t_N * self.config.time_scale, y_N)
        velocity = self.target(x, noise)
        error = prediction.value[..., : shape[-1]] - velocity
        return total_loss({"mse": mean_per_example(error**2)}, t_N, prediction, velocity)

    def diffuse(self, x: jax.Array, t_N: jax.Array, noise: jax.Array) -> jax.Array:
        """z_t from data and noise."""
        t = broadcast_time(t_N, x)
        return (1 - t) * x + t * noise

    def noised(
        self, x: jax.Array, place_N: jax.Array, noise: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """z_t of the place itself, which is a time; see `Objective.noised`."""
        return self.diffuse(x, place_N, noise), place_N * self.config.time_scale

    def target(self, x: jax.Array, noise: jax.Array) -> jax.Array:
        """The velocity."""
        return noise - x

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

        def denoise(z: jax.Array, t: jax.Array, y_N: jax.Array) -> Denoised:
            t_N = jnp.broadcast_to(t, y_N.shape).astype(jnp.float32)
            value = network(z, t_N * self.config.time_scale, y_N).value
            channels = z.shape[-1]
            velocity, t = value[..., :channels], broadcast_time(t, z)
            return Denoised(
                clean=z - t * velocity,
                noise=z + (1 - t) * velocity,
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

    def quadratic_times(self, steps: int) -> np.ndarray:
        """Times [steps + 1], (i / steps)^2 before the shift, from 1 to 0."""
        return self.shift(np.linspace(1, 0, steps + 1) ** 2).astype(np.float32)

    def places(self, steps: int) -> np.ndarray:
        """Times without the last 0: [steps] float32."""
        return self.times(steps)[:-1]
