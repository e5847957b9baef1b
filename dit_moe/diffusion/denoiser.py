"""What solvers and guidance see of a trained network, whatever its objective.

Every Gaussian path alpha_t x_0 + sigma_t noise is, up to its scale, the straight one: divided by
alpha_t + sigma_t it is z = (1 - t) x_0 + t noise with t = sigma_t / (alpha_t + sigma_t). Solvers
know this path alone; an objective translates between it and what its network was trained on.

An example has any rank: images [H, W, C], tokens [S, D] or vectors [D]. The last axis are its
channels.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Denoised:
    """What a network believes z to be made of: z = (1 - t) clean + t noise."""

    clean: jax.Array
    """[N, ..., C] float32: the expectation of x_0, the data without noise."""
    noise: jax.Array
    """[N, ..., C] float32."""
    variance: jax.Array
    """[N, ..., 0 or C] float32: a learned variance as the network states it (IDDPM, eq. 15)."""

    @property
    def velocity(self) -> jax.Array:
        """dz/dt of the probability flow: [N, ..., C] float32."""
        return self.noise - self.clean


Denoiser = Callable[[jax.Array, jax.Array, jax.Array], Denoised]
"""From z [N, ..., C], t (one for all examples, or [N]) and labels [N]."""


def unit_variance(t: jax.Array) -> jax.Array:
    """The factor that gives z the variance 1 if x_0 has it (of variance-preserving paths)."""
    return jax.lax.rsqrt(jnp.square(1 - t) + jnp.square(t))


def broadcast_time(t: jax.Array, z: jax.Array) -> jax.Array:
    """One time, or one per example, shaped to multiply z [N, ...] of any rank."""
    return jnp.reshape(t, (*jnp.shape(t), *[1] * (z.ndim - 1))) if jnp.ndim(t) else t


def mean_per_example(x: jax.Array) -> jax.Array:
    """Mean over all but the first axis: [N]."""
    return x.mean(axis=tuple(range(1, x.ndim)))
