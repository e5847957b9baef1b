"""From a matrix to its packed form: round to nearest, HQQ, GPTQ."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from dit_moe.nn.packed import SCALE, Grid, Packed, by_group, pack, range_grid

DAMPING = 0.01
"""Of the mean of the diagonal, added to all of it; ten times as much until the factor is finite."""

_NORM, _SHRINKING, _GROWTH, _ROUNDS = 0.7, 10.0, 1.01, 20  # HQQ's p, beta, kappa, iterations


@functools.partial(jax.jit, static_argnums=(1, 2))
def nearest(w_DxG: jax.Array, bits: int, group: int) -> Packed:
    """Matrices [..., D, G] rounded to the nearest of `range_grid`."""
    return Packed.of(w_DxG, range_grid(w_DxG, bits, group), bits, group)


@functools.partial(jax.jit, static_argnums=(1, 2))
def half_quadratic(w_DxG: jax.Array, bits: int, group: int) -> Packed:
    """Matrices [..., D, G] by HQQ (Badri & Shaji 2023), which needs no data.

    The scale is that of `range_grid`. The zero moves, by half-quadratic splitting, to where errors
    are small in a norm of p = 0.7, for which a few large ones count little. Of all rounds each
    group keeps the one with the least mean error, the first of which is round to nearest. Weights
    that are 0 need not stay so.
    """
    first = range_grid(w_DxG, bits, group)
    grouped, scale = by_group(w_DxG, group), first.scale.astype(jnp.float32)[..., None, :]
    # Rows that fill up the last group count nothing.
    real = by_group(jnp.ones_like(w_DxG[..., :1]), group)
    number = real.sum(axis=-2)

    def rounded(zero: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        own = zero.astype(SCALE).astype(jnp.float32)[..., None, :]
        codes = jnp.clip(jnp.round(grouped / scale + own), 0, 2**bits - 1)
        error = grouped - (codes - own) * scale
        return codes, error, jnp.sum(jnp.abs(error) * real, axis=-2) / number

    def step(carry: tuple[jax.Array, ...], beta: jax.Array):
        zero, best, least = carry
        codes, error, size = rounded(zero)
        best, least = jnp.where(size < least, zero, best), jnp.minimum(size, least)
        shrunk = jnp.abs(error) - jnp.maximum(jnp.abs(error), 1e-12) ** (_NORM - 1) / beta
        kept = jnp.sign(error) * jnp.maximum(shrunk, 0)
        wanted = codes - (grouped - kept) / scale
        return (jnp.sum(wanted * real, axis=-2) / number, best, least), None

    zero = first.zero.astype(jnp.float32)
    betas = _SHRINKING * _GROWTH ** jnp.arange(_ROUNDS)
    (_, best, _), _ = lax.scan(step, (zero, zero, jnp.full_like(zero, jnp.inf)), betas)
    return Packed.of(w_DxG, Grid(first.scale, best.astype(SCALE)), bits, group)


@functools.partial(jax.jit, static_argnums=(2, 3))
def gptq(w_DxG: jax.Array, h_DxD: jax.Array, bits: int, group: int) -> Packed:
    """A matrix, or a stack [E, D, G] with its own sums, by GPTQ (Frantar et al. 2023).

    Rows are rounded one after another, and those to come take over what the inputs' correlations
    let them of each error. A group's grid is that of its rows as they are when it begins. What is
    left is exactly round to nearest where inputs are not correlated, or where there were none.

    Args:
      w_DxG: the weights.
      h_DxD: sums over the inputs x of x x^T, up to a factor; float32.
      bits: of a code.
      group: rows of a group.
    """
    if w_DxG.ndim > 2:
        # One after another, since all factors at once would be large.
        return lax.map(lambda both: gptq(*both, bits, group), (w_DxG, h_DxD))
    rows = w_DxG.shape[0]
    filled = -rows % group
    # Inputs of zeros that know nothing of the others.
    w = jnp.pad(w_DxG.astype(jnp.float32), [(0, filled), (0, 0)])
    factor = jnp.pad(_factor(h_DxD), [(0, filled)] * 2)
    factor = factor.at[jnp.arange(rows, rows + filled), jnp.arange(rows, rows + filled)].set(1)

    def of_group(w: jax.Array, start: jax.Array):
        block = lax.dynamic_slice_in_dim(w, start, group)
        above = lax.dynamic_slice_in_dim(factor, start, group)
        own = lax.dynamic_slice_in_dim(above, start, group, axis=1)
        grid = range_grid(block, bits, group)

        def of_row(block: jax.Array, row: jax.Array):
            codes = grid.codes(block[row][None], bits, 1)
            error = (block[row] - grid.weights(codes, 1)[0]) / own[row, row]
            later = jnp.where(jnp.arange(group) > row, own[row], 0)
            return block - later[:, None] * error, (codes[0], error)

        _, (codes, errors) = lax.scan(of_row, block, jnp.arange(group))
        later = jnp.where(jnp.arange(len(w)) >= start + group, above, 0)
        w = w - jnp.matmul(later.T, errors, precision=lax.Precision.HIGHEST)
        return w, (codes, grid.scale[0], grid.zero[0])

    _, (codes, scale, zero) = lax.scan(of_group, w, jnp.arange(0, len(w), group))
    codes = codes.reshape(w.shape)[:rows]
    return Packed(pack(codes, bits), Grid(scale, zero), bits, group, rows)


def _factor(h_DxD: jax.Array) -> jax.Array:
    """The upper triangular U with U^T U = (H + damping)^-1; the identity where H is 0."""
    mean = jnp.mean(jnp.diagonal(h_DxD))
    one = jnp.eye(len(h_DxD))
    h_DxD, mean = jnp.where(mean > 0, h_DxD, one), jnp.where(mean > 0, mean, 1)

    def damped(damping: jax.Array) -> jax.Array:
        # Backwards, since H = L L^T gives the inverse by its lower triangle.
        lower = jnp.linalg.cholesky((h_DxD / mean + damping * one)[::-1, ::-1])
        return lax.linalg.triangular_solve(lower, one, left_side=True, lower=True)[::-1, ::-1]

    def fails(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        damping, found = carry
        return ~jnp.isfinite(found).all() & (damping < 100)

    first = jnp.float32(DAMPING)
    start = first, damped(first)
    return lax.while_loop(fails, lambda c: (10 * c[0], damped(10 * c[0])), start)[1]
