"""The linear layer of this network: Xavier uniform, zero bias, logical axis names."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name

_XAVIER = jax.nn.initializers.xavier_uniform()
KAIMING = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""Kaiming uniform with a = sqrt(5): the bound is sqrt(6 / ((1 + a^2) fan_in))."""

PRODUCT_RESIDUAL = "product"
"""The name under which rematerialisation finds the results of this module's products."""

Axes = tuple[str | None, str | None]


class Linear(nnx.Linear):
    """Flax's layer with the products and gradients of `affine`."""

    def __call__(self, x: jax.Array) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Maps [..., D] to [..., G]."""
        assert self.bias is not None
        x, kernel_DxG, bias_G = self.promote_dtype(
            (x, self.kernel[...], self.bias[...]), dtype=self.dtype
        )
        return affine(x, kernel_DxG, bias_G)


def linear(
    in_features: int,
    out_features: int,
    axes: Axes,
    rngs: nnx.Rngs,
    *,
    dtype: jnp.dtype | None = None,
    init: Callable = _XAVIER,
) -> Linear:
    """A linear layer with bias.

    Args:
      in_features: width of the input.
      out_features: width of the output.
      axes: logical names of the kernel's two axes, for `training/mesh.py`.
      rngs: source of the kernel.
      dtype: of the computation; None for that of input and float32 parameters promoted.
      init: initialiser of the kernel.
    """
    return Linear(
        in_features,
        out_features,
        dtype=dtype,
        kernel_init=init,
        kernel_metadata={"axes": axes},
        bias_metadata={"axes": axes[1:]},
        rngs=rngs,
    )


def affine(x: jax.Array, w_DxG: jax.Array, b_G: jax.Array) -> jax.Array:
    """x w + b: [..., D] to [..., G] in the dtype of x, which w and b share."""
    return checkpoint_name(_affine(x, w_DxG, b_G), PRODUCT_RESIDUAL)


def product(x: jax.Array, w_DxG: jax.Array) -> jax.Array:
    """x w: [..., D] to [..., G] in the dtype of x, which w shares."""
    return checkpoint_name(_product(x, w_DxG), PRODUCT_RESIDUAL)


# Backward passes of their own: autodiff sums rows for the bias where a product is faster, and
# transposes an operand of the product that gives the gradient of w.
Kept = tuple[jax.Array, jax.Array]


@jax.custom_vjp
def _affine(x: jax.Array, w_DxG: jax.Array, b_G: jax.Array) -> jax.Array:
    return _narrow_dot(x, w_DxG, (x.ndim - 1,), (0,)) + b_G


def _affine_backward(kept: Kept, dy: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    rows = tuple(range(dy.ndim - 1))
    db_G = _narrow_dot(jnp.ones(dy.shape[:-1], dy.dtype), dy, rows, rows)
    return *_product_backward(kept, dy), db_G


@jax.custom_vjp
def _product(x: jax.Array, w_DxG: jax.Array) -> jax.Array:
    return _narrow_dot(x, w_DxG, (x.ndim - 1,), (0,))


def _product_backward(kept: Kept, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w_DxG = kept
    rows = tuple(range(dy.ndim - 1))
    return _narrow_dot(dy, w_DxG, (dy.ndim - 1,), (1,)), _narrow_dot(x, dy, rows, rows)


_affine.defvjp(lambda x, w, b: (_affine(x, w, b), (x, w)), _affine_backward)
_product.defvjp(lambda x, w: (_product(x, w), (x, w)), _product_backward)


def dot(a: jax.Array, b: jax.Array, of_a: tuple[int, ...], of_b: tuple[int, ...]) -> jax.Array:
    """Contracts axes of two arrays, which share a dtype; the sum in float32 or wider."""
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(a, b, ((of_a, of_b), ((), ())), preferred_element_type=wide)


def _narrow_dot(
    a: jax.Array, b: jax.Array, of_a: tuple[int, ...], of_b: tuple[int, ...]
) -> jax.Array:
    return dot(a, b, of_a, of_b).astype(a.dtype)
