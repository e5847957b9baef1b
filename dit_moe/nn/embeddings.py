"""How patches, positions, timesteps and labels become vectors."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dit_moe.nn.linear import linear

_NORMAL = jax.nn.initializers.normal(0.02)
Grid = tuple[int, int]
"""Rows and columns of patches."""
TIME_FEATURES = 256
"""How many sines and cosines a time becomes, in all published models."""


def patchify(x_NxHxWxC: jax.Array, patch_size: int) -> jax.Array:
    """Cuts images into flattened patches: [N, H, W, C] to [N, H W / p^2, p p C], row by row."""
    n, height, width, channels = x_NxHxWxC.shape
    p = patch_size
    x = x_NxHxWxC.reshape(n, height // p, p, width // p, p, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, -1, p * p * channels)


def unpatchify(x_NxSxP: jax.Array, grid: Grid, patch_size: int) -> jax.Array:
    """The inverse of `patchify` for so many rows and columns of patches."""
    (n, _, features), (rows, columns), p = x_NxSxP.shape, grid, patch_size
    channels = features // (p * p)
    x = x_NxSxP.reshape(n, rows, columns, p, p, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, rows * p, columns * p, channels)


def position_embedding(grid: Grid, width: int, native: Grid | None = None) -> np.ndarray:
    """Fixed 2-D sine-cosine positions of a grid, row by row: float32 [rows * columns, width].

    The first half of the width encodes the column, the second the row; in each, sines of all
    frequencies 10000^(-4i / width) come before the cosines (DiT). A grid of another size than the
    native one is stretched over it, so that a position means the same place of the picture
    (Chen et al. 2023, PixArt-alpha).
    """
    row, column = (
        np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
        for angle in _grid_angles(grid, width // 4, native)
    )
    return np.concatenate([column, row], axis=1).astype(np.float32)


def rotary_angles(grid: Grid, head_width: int, native: Grid | None = None) -> np.ndarray:
    """How far rotary embedding turns the pairs of a head: float32 [rows * columns, head_width / 2].

    The first half of the angles is the token's row, the second its column, at frequencies
    10000^(-4i / head_width) (DSMoE). Grids of another size are stretched as by
    `position_embedding`.
    """
    angles = _grid_angles(grid, head_width // 4, native)
    return np.concatenate(angles, axis=1).astype(np.float32)


def _grid_angles(
    grid: Grid, frequencies: int, native: Grid | None
) -> tuple[np.ndarray, np.ndarray]:
    """Those of the row and of the column of every patch: float64 [rows * columns, frequencies]."""
    (rows, columns), (native_rows, native_columns) = grid, native or grid
    row = np.repeat(_axis_angles(rows, frequencies, native_rows), columns, axis=0)
    column = np.tile(_axis_angles(columns, frequencies, native_columns), (rows, 1))
    return row, column


def _axis_angles(side: int, frequencies: int, native_side: int) -> np.ndarray:
    """Places along one axis times geometric frequencies: float64 [side, frequencies]."""
    omega = 10000.0 ** -(np.arange(frequencies) / frequencies)
    place = np.arange(side) * (native_side / side)
    return place[:, None] * omega


def timestep_features(
    t_N: jax.Array, dim: int = TIME_FEATURES, max_period: float = 10000.0
) -> jax.Array:
    """Cosines, then sines, of t at dim / 2 geometric frequencies: float32 [N, dim] (DiT)."""
    half = dim // 2
    frequency = np.exp(-np.log(max_period) * np.arange(half, dtype=np.float32) / half)
    angle = t_N.astype(jnp.float32)[:, None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class TimestepEmbedding(nnx.Module):
    """Sinusoidal features through a two-layer SiLU MLP."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.dense_in = linear(TIME_FEATURES, width, (None, "embed"), rngs, init=_NORMAL)
        self.dense_out = linear(width, width, (None, "embed"), rngs, init=_NORMAL)

    def __call__(self, t_N: jax.Array) -> jax.Array:
        """Maps times in the network's unit [N] to float32 [N, D]."""
        return self.dense_out(jax.nn.silu(self.dense_in(timestep_features(t_N))))


class LabelEmbedding(nnx.Module):
    """A table of one vector per class and one more for the null label."""

    def __init__(self, num_classes: int, width: int, rngs: nnx.Rngs):
        table = _NORMAL(rngs.params(), (num_classes + 1, width), jnp.float32)
        self.table = nnx.Param(table, axes=(None, "embed"))

    def __call__(self, y_N: jax.Array) -> jax.Array:
        """Maps labels [N] to float32 [N, D]."""
        return self.table[...][y_N]


def drop_labels(key_N: jax.Array, y_N: jax.Array, rate: float, null_label: int) -> jax.Array:
    """Replaces each label by the null label with probability `rate`, by its image's own key.

    Done outside of the network so that routers and embedding see the same labels (classifier-free
    guidance; Ho & Salimans 2022).
    """
    drop_N = jax.vmap(lambda key: jax.random.bernoulli(key, rate))(key_N)
    return jnp.where(drop_N, null_label, y_N)


def drop_labels_of_pairs(
    key_N: jax.Array, y_N: jax.Array, rate: float, null_label: int
) -> jax.Array:
    """The same for pairs that lie one after another: with probability `rate` each, both lose their
    label, the first alone, or the second alone (as UniCon's code; Li et al. 2024).

    A rate of 1 drops all.
    """
    place_P = jax.vmap(jax.random.uniform)(key_N[::2])
    first_P, second_P = place_P < 2 * rate, (rate < place_P) & (place_P < 3 * rate)
    drop_N = jnp.stack([first_P, second_P], axis=1).reshape(-1) | (rate == 1)
    return jnp.where(drop_N, null_label, y_N)
