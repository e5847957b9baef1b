"""Guidance: a denoiser is pushed away from what a weaker one says of the same z."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dit_moe.config import GuidanceConfig
from dit_moe.diffusion.denoiser import Denoised, Denoiser, broadcast_time

Contrast = Callable[[jax.Array, jax.Array, jax.Array], tuple[Denoised, Denoised]]
"""The strong and the weak prediction, from the arguments of a `Denoiser`."""


def scale_at(guidance: GuidanceConfig, t: jax.Array) -> jax.Array:
    """The scale at flow times t, of the same shape; 1 outside of the interval.

    What is scheduled is the weight, scale - 1, so that a schedule has the mean over t of the
    constant one: `linear` 2 (1 - t), `cosine` 1 + cos(pi t) times the weight (Wang et al.
    2024). Both are 0 at the noise and double at the data.
    """
    factor = {
        "constant": jnp.ones_like(t),
        "linear": 2 * (1 - t),
        "cosine": 1 + jnp.cos(jnp.pi * t),
    }[guidance.schedule]
    return jnp.where(inside(guidance, t), 1 + (guidance.scale - 1) * factor, 1)


def inside(guidance: GuidanceConfig, t: jax.Array) -> jax.Array:
    """Whether flow times t lie in the interval: bool, of the same shape."""
    low, high = guidance.interval
    return (low <= t) & (t <= high)


def mix(guidance: GuidanceConfig, strong: Denoised, weak: Denoised, t: jax.Array) -> Denoised:
    """strong + (scale - 1) (strong - weak), rescaled.

    The formula is the same for noise, velocity and x_0, which are linear in each other at a
    given z and t. The deviation that `rescale` restores is the velocity's, whatever the network
    predicts. A learned variance is the strong one's.
    """
    weight = broadcast_time(scale_at(guidance, t) - 1, strong.clean)
    guided = strong.clean.shape[-1] if guidance.channels == "all" else 3

    def push(strong: jax.Array, weak: jax.Array) -> jax.Array:
        difference = (strong - weak).at[..., guided:].set(0)
        return strong + weight * difference

    clean, noise = push(strong.clean, weak.clean), push(strong.noise, weak.noise)
    if guidance.rescale:
        velocity = noise - clean
        axes = tuple(range(1, velocity.ndim))
        deviation_before, deviation = (
            v[..., :guided].std(axis=axes, keepdims=True) for v in (strong.velocity, velocity)
        )
        # A flat prediction, such as an untrained network's, has no contrast to take back.
        ratio = jnp.where(deviation > 0, deviation_before / deviation, 1)
        change = guidance.rescale * (ratio - 1) * velocity
        change = change.at[..., guided:].set(0)
        t = broadcast_time(t, clean)
        clean, noise = clean - t * change, noise + (1 - t) * change
    return Denoised(clean=clean, noise=noise, variance=strong.variance)


def guide(denoiser: Denoiser, contrast: Contrast, guidance: GuidanceConfig) -> Denoiser:
    """The denoiser, guided by a weaker one.

    With scale 1 it is the denoiser itself. Where no example is inside of the interval the contrast
    is not computed, but the denoiser alone.

    Args:
      denoiser: the strong one.
      contrast: both, of which the first is `denoiser`.
      guidance: how.
    """
    if guidance.scale == 1:
        return denoiser

    def guided(z: jax.Array, t: jax.Array, y_N: jax.Array) -> Denoised:
        return mix(guidance, *contrast(z, t, y_N), t)

    if guidance.interval == (0, 1):
        return guided

    def within(z: jax.Array, t: jax.Array, y_N: jax.Array) -> Denoised:
        any_inside = jnp.any(inside(guidance, t))
        return jax.lax.cond(any_inside, guided, denoiser, z, t, y_N)

    return within


def against_null_label(denoiser: Denoiser, null_label: int) -> Contrast:
    """Classifier-free guidance: the weak one sees no class (Ho & Salimans 2022).

    Their w in eq. 6 is scale - 1. Both come from one pass of twice the batch.
    """

    def contrast(z: jax.Array, t: jax.Array, y_N: jax.Array) -> tuple[Denoised, Denoised]:
        t_N = jnp.broadcast_to(t, y_N.shape)
        both = denoiser(
            jnp.concatenate([z, z]),
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

    def contrast(z: jax.Array, t: jax.Array, y_N: jax.Array) -> tuple[Denoised, Denoised]:
        return denoiser(z, t, y_N), weak(z, t, y_N)

    return contrast
