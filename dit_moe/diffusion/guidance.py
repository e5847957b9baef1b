"""Guidance: a denoiser is pushed away from what a weaker one says of the same z."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from dit_moe.config import GuidanceSchedule
from dit_moe.diffusion.denoiser import Denoised, Denoiser, broadcast_time

Contrast = Callable[[jax.Array, jax.Array, jax.Array], tuple[Denoised, Denoised]]
"""The strong and the weak prediction, from the arguments of a `Denoiser`."""


@dataclasses.dataclass(frozen=True)
class Guidance:
    """How far, when, and in which channels a denoiser is guided."""

    scale: float = 1.0
    """1 is the strong denoiser, 0 the weak one; more than 1 is guidance."""
    schedule: GuidanceSchedule = "constant"
    interval: tuple[float, float] = (0.0, 1.0)
    """The flow times, both included, within which there is guidance (Kynkäänniemi et al. 2024).
    Their noise level is sigma = t / (1 - t)."""
    rescale: float = 0.0
    """phi of Lin et al. 2023, eq. 15 and 16: 0 leaves the guided prediction as it is, 1 gives it
    the standard deviation of the strong one."""
    channels: Literal["all", "first_three"] = "all"
    """`first_three` is the habit of DiT's published samples."""

    def scale_at(self, t: jax.Array) -> jax.Array:
        """The scale at flow times t, of the same shape; 1 outside of the interval.

        What is scheduled is the weight, scale - 1, so that a schedule has the mean over t of the
        constant one: `linear` 2 (1 - t), `cosine` 1 + cos(pi t) times the weight (Wang et al.
        2024). Both are 0 at the noise and double at the data.
        """
        factor = {
            "constant": jnp.ones_like(t),
            "linear": 2 * (1 - t),
            "cosine": 1 + jnp.cos(jnp.pi * t),
        }[self.schedule]
        return jnp.where(self.inside(t), 1 + (self.scale - 1) * factor, 1)

    def mix(self, strong: Denoised, weak: Denoised, t: jax.Array) -> Denoised:
        """strong + (scale - 1) (strong - weak), rescaled.

        The formula is the same for noise, velocity and x_0, which are linear in each other at a
        given z and t. The deviation that `rescale` restores is the velocity's, whatever the network
        predicts. A learned variance is the strong one's.
        """
        weight = broadcast_time(self.scale_at(t) - 1)
        guided = strong.clean.shape[-1] if self.channels == "all" else 3

        def push(strong: jax.Array, weak: jax.Array) -> jax.Array:
            difference = (strong - weak).at[..., guided:].set(0)
            return strong + weight * difference

        clean, noise = push(strong.clean, weak.clean), push(strong.noise, weak.noise)
        if self.rescale:
            velocity = noise - clean
            deviation_before, deviation = (
                v[..., :guided].std(axis=(1, 2, 3), keepdims=True)
                for v in (strong.velocity, velocity)
            )
            # A flat prediction, such as an untrained network's, has no contrast to take back.
            ratio = jnp.where(deviation > 0, deviation_before / deviation, 1)
            change = self.rescale * (ratio - 1) * velocity
            change = change.at[..., guided:].set(0)
            t = broadcast_time(t)
            clean, noise = clean - t * change, noise + (1 - t) * change
        return Denoised(clean=clean, noise=noise, variance=strong.variance)

    def inside(self, t: jax.Array) -> jax.Array:
        """Whether flow times t lie in the interval: bool, of the same shape."""
        low, high = self.interval
        return (low <= t) & (t <= high)


def guide(denoiser: Denoiser, contrast: Contrast, guidance: Guidance) -> Denoiser:
    """The denoiser, guided by a weaker one.

    With scale 1 it is the denoiser itself. Where no image is inside of the interval the contrast is
    not computed, but the denoiser alone.

    Args:
      denoiser: the strong one.
      contrast: both, of which the first is `denoiser`.
      guidance: how.
    """
    if guidance.scale == 1:
        return denoiser

    def guided(z_NxHxWxC: jax.Array, t: jax.Array, y_N: jax.Array) -> Denoised:
        return guidance.mix(*contrast(z_NxHxWxC, t, y_N), t)

    if guidance.interval == (0, 1):
        return guided

    def within(z_NxHxWxC: jax.Array, t: jax.Array, y_N: jax.Array) -> Denoised:
        inside = jnp.any(guidance.inside(t))
        return jax.lax.cond(inside, guided, denoiser, z_NxHxWxC, t, y_N)

    return within


def against_null_label(denoiser: Denoiser, null_label: int) -> Contrast:
    """Classifier-free guidance: the weak one sees no class (Ho & Salimans 2022).

    Their w in eq. 6 is scale - 1. Both come from one pass of twice the batch.
    """

    def contrast(z_NxHxWxC: jax.Array, t: jax.Array, y_N: jax.Array) -> tuple[Denoised, Denoised]:
        t_N = jnp.broadcast_to(t, y_N.shape)
        both = denoiser(
            jnp.concatenate([z_NxHxWxC, z_NxHxWxC]),
            jnp.concatenate([t_N, t_N]),
            jnp.concatenate([y_N, jnp.full_like(y_N, null_label)]),
        )
        n = len(y_N)
        return jax.tree.map(lambda v: v[:n], both), jax.tree.map(lambda v: v[n:], both)

    return contrast


def against(denoiser: Denoiser, weak: Denoiser) -> Contrast:
    """The weak one is another network that sees the same class: two passes.

    A worse network of the same data (autoguidance, Karras et al. 2024), or the same one with its
    tokens at other experts (SCMoE, Shi et al. 2024, whose beta is scale - 1).
    """

    def contrast(z_NxHxWxC: jax.Array, t: jax.Array, y_N: jax.Array) -> tuple[Denoised, Denoised]:
        return denoiser(z_NxHxWxC, t, y_N), weak(z_NxHxWxC, t, y_N)

    return contrast
