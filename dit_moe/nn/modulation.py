"""Adaptive layer normalisation: what a condition does to tokens before each part of a block."""

import jax
import jax.numpy as jnp

EPSILON = 1e-6


@jax.custom_vjp
def modulate(x_NxSxD: jax.Array, shift_NxD: jax.Array, scale_NxD: jax.Array) -> jax.Array:
    """LayerNorm without parameters (eps 1e-6, in float32), then x (1 + scale) + shift (DiT).

    All three share a dtype, which is the result's too.
    """
    normal_NxSxD, _ = _standardize(x_NxSxD)
    return normal_NxSxD.astype(x_NxSxD.dtype) * (1 + scale_NxD[:, None]) + shift_NxD[:, None]


def _standardize(x_NxSxD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Tokens with mean 0 and variance 1, and the reciprocals [N, S, 1] of their deviations."""
    x = _wide(x_NxSxD)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + EPSILON)
    return centred * inverse, inverse


def _wide(array: jax.Array) -> jax.Array:
    """In float32, or float64 as it is."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


Kept = tuple[jax.Array, jax.Array]


def _modulate_forward(
    x_NxSxD: jax.Array, shift_NxD: jax.Array, scale_NxD: jax.Array
) -> tuple[jax.Array, Kept]:
    return modulate(x_NxSxD, shift_NxD, scale_NxD), (x_NxSxD, scale_NxD)


def _modulate_backward(kept: Kept, dy_NxSxD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    # Autodiff keeps each step of the normalisation; this keeps the input alone.
    x_NxSxD, scale_NxD = kept
    normal_NxSxD, inverse_NxSx1 = _standardize(x_NxSxD)
    dy = _wide(dy_NxSxD)
    dnormal = dy * (1 + _wide(scale_NxD)[:, None])
    along = jnp.mean(dnormal * normal_NxSxD, axis=-1, keepdims=True)
    dx = inverse_NxSx1 * (
        dnormal - jnp.mean(dnormal, axis=-1, keepdims=True) - normal_NxSxD * along
    )
    dshift, dscale = jnp.sum(dy, axis=1), jnp.sum(dy * normal_NxSxD, axis=1)
    return (
        dx.astype(x_NxSxD.dtype),
        dshift.astype(scale_NxD.dtype),
        dscale.astype(scale_NxD.dtype),
    )


modulate.defvjp(_modulate_forward, _modulate_backward)
