"""Guidance: a denoiser made of one or more passes of others."""

from typing import Literal

import jax
import jax.numpy as jnp

from dit_moe.diffusion.denoiser import Denoised, Denoiser


def classifier_free(
    denoiser: Denoiser,
    scale: float,
    null_label: int,
    channels: Literal["all", "first_three"] = "all",
) -> Denoiser:
    """uncond + scale (cond - uncond), both in one pass of twice the batch.

    Ho & Salimans 2022, eq. 6, whose w is scale - 1. The formula is the same for noise, velocity
    and x_0, which are linear in each other at a given z and t.

    With scale 1 it is the denoiser itself, without a second pass. A learned variance is that of the
    conditional pass.

    Args:
      denoiser: what to guide.
      scale: 0 is unconditional, 1 conditional, more is stronger guidance.
      null_label: the label that stands for no class.
      channels: guide all channels of z, or, as DiT's published samples, the first three.
    """
    if scale == 1:
        return denoiser

    def guided(z_NxHxWxC: jax.Array, t: jax.Array, y_N: jax.Array) -> Denoised:
        t_N = jnp.broadcast_to(t, y_N.shape)
        both = denoiser(
            jnp.concatenate([z_NxHxWxC, z_NxHxWxC]),
            jnp.concatenate([t_N, t_N]),
            jnp.concatenate([y_N, jnp.full_like(y_N, null_label)]),
        )
        g = z_NxHxWxC.shape[-1] if channels == "all" else 3

        def mix(value: jax.Array) -> jax.Array:
            conditional, unconditional = jnp.split(value, 2)
            mixed = unconditional + scale * (conditional - unconditional)
            return jnp.concatenate([mixed[..., :g], conditional[..., g:]], axis=-1)

        return Denoised(
            clean=mix(both.clean),
            noise=mix(both.noise),
            variance=jnp.split(both.variance, 2)[0],
        )

    return guided
