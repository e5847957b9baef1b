"""What solvers and guidance see of a trained network, whatever its objective.

Every Gaussian path alpha_t x_0 + sigma_t noise is, up to its scale, the straight one: divided by
alpha_t + sigma_t it is z = (1 - t) x_0 + t noise with t = sigma_t / (alpha_t + sigma_t). Solvers
know this path alone; an objective translates between it and what its network was trained on.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Denoised:
    """What a network believes z to be made of: z = (1 - t) clean + t noise."""

    clean: jax.Array
    """[N, H, W, C] float32: the expectation of x_0, the data without noise."""
    noise: jax.Array
    """[N, H, W, C] float32."""
    variance: jax.Array
    """[N, H, W, 0 or C] float32: a learned variance as the network states it (IDDPM, eq. 15)."""

    @property
    def velocity(self) -> jax.Array:
        """dz/dt of the probability flow: [N, H, W, C] float32."""
        return self.noise - self.clean


Denoiser = Callable[[jax.Array, jax.Array, jax.Array], Denoised]
"""From z [N, H, W, C], t (one for all images, or [N]) and labels [N]."""


def unit_variance(t: jax.Array) -> jax.Array:
    """The factor that gives z the variance 1 if x_0 has it (of variance-preserving paths)."""
    return jax.lax.rsqrt(jnp.square(1 - t) + jnp.square(t))


def broadcast_time(t: jax.Array) -> jax.Array:
    """One time, or one per image, shaped to multiply [N, H, W, C]."""
    return jnp.reshape(t, (*jnp.shape(t), 1, 1, 1)) if jnp.ndim(t) else t
