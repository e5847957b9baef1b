"""3x3 convolutions by fewer multiplications, for CPUs.

Winograd's minimal filtering F(2x2, 3x3) (Lavin & Gray 2016, section 4.1) makes 2x2 output pixels of
a 4x4 input tile with 16 products instead of 36: Y = A' [(G g G') * (B' d B)] A. Over all tiles and
channels the products are 16 matrix multiplications.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

_B_T = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
_G = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
_A_T = ((1, 1, 1, 0), (0, 1, -1, -1))
_LARGEST_IMAGE = 2**25
"""Numbers in one image; its transformed tiles take four times as many, before and after."""

Matrix = tuple[tuple[float, ...], ...]
Grid = list[list[jax.Array]]


def convolve(
    x_NxHxWxC: jax.Array,
    kernel_IxJxCxD: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **settings: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, by `winograd` where that is faster."""
    plain = tuple(strides) == (1, 1) and padding == "SAME"
    if plain and jax.default_backend() == "cpu" and _winograd_pays(x_NxHxWxC, kernel_IxJxCxD):
        return winograd(x_NxHxWxC, kernel_IxJxCxD)
    return jax.lax.conv_general_dilated(x_NxHxWxC, kernel_IxJxCxD, strides, padding, **settings)


def _winograd_pays(x_NxHxWxC: jax.Array, kernel_IxJxCxD: jax.Array) -> bool:
    _, h, w, c = x_NxHxWxC.shape
    fits = kernel_IxJxCxD.shape[:2] == (3, 3) and h % 2 == 0 and w % 2 == 0
    exact = x_NxHxWxC.dtype == kernel_IxJxCxD.dtype == jnp.float32
    # With few channels the transforms cost more than the products save.
    return fits and exact and min(c, kernel_IxJxCxD.shape[3]) >= 256 and h * w * c <= _LARGEST_IMAGE


def winograd(x_NxHxWxC: jax.Array, kernel_3x3xCxD: jax.Array) -> jax.Array:
    """A 3x3 convolution of stride 1 that keeps the images' size.

    Args:
      x_NxHxWxC: float32 [N, H, W, C], H and W even.
      kernel_3x3xCxD: float32 [3, 3, C, D].

    Returns:
      float32 [N, H, W, D]: the direct convolution but for rounding.
    """
    g = [[kernel_3x3xCxD[i, j] for j in range(3)] for i in range(3)]
    kernels = _both_sides(_G, g)
    # One image at a time: the tiles of a batch would not fit in a cache, or in memory.
    return jax.lax.map(lambda x_HxWxC: _winograd_image(x_HxWxC, kernels), x_NxHxWxC)


def _winograd_image(x_HxWxC: jax.Array, kernels: Grid) -> jax.Array:
    h, w, c = x_HxWxC.shape
    padded = jnp.pad(x_HxWxC, ((1, 1), (1, 1), (0, 0)))
    # d[i][j] holds pixel (i, j) of every 4x4 tile [T, C]; a tile starts at every second pixel.
    d = [
        [padded[i : i + h - 1 : 2, j : j + w - 1 : 2].reshape(-1, c) for j in range(4)]
        for i in range(4)
    ]
    tiles = _both_sides(_B_T, d)
    products = [[tiles[i][j] @ kernels[i][j] for j in range(4)] for i in range(4)]
    y = _both_sides(_A_T, products)
    y_Tx2x2xD = jnp.stack([jnp.stack(row, axis=1) for row in y], axis=1)
    y = y_Tx2x2xD.reshape(h // 2, w // 2, 2, 2, -1).transpose(0, 2, 1, 3, 4)
    return y.reshape(h, w, -1)


def _both_sides(matrix: Matrix, grid: Grid) -> Grid:
    """The matrix product M X M' where X is a grid of arrays."""

    def combine(row: tuple[float, ...], arrays: list[jax.Array]) -> jax.Array:
        terms = [m * x for m, x in zip(row, arrays, strict=True) if m]
        return sum(terms[1:], terms[0])

    left = [[combine(row, list(column)) for column in zip(*grid, strict=True)] for row in matrix]
    return [[combine(row, line) for row in matrix] for line in left]
