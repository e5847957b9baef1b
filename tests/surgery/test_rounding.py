"""Round to nearest, HQQ and GPTQ against what is known of each."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.nn.packed import Packed, by_group, range_grid
from dit_moe.surgery.compress.rounding import DAMPING, gptq, half_quadratic, nearest


def correlated(rows: int, tokens: int, seed: int) -> np.ndarray:
    """Inputs [tokens, rows] of which a few directions hold most."""
    rng = np.random.default_rng(seed)
    few = rng.normal(size=(tokens, rows // 4 + 1)) @ rng.normal(size=(rows // 4 + 1, rows))
    return (few + 0.3 * rng.normal(size=(tokens, rows))).astype(np.float32)


def weights(rows: int, outputs: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (rows, outputs)) / rows**0.5


def error(x: np.ndarray, w: jax.Array, packed: Packed) -> float:
    """Relative, of the outputs."""
    difference = x @ np.asarray(packed.weights() - w)
    return float(np.square(difference).sum() / np.square(x @ np.asarray(w)).sum())


@pytest.mark.parametrize("group", [16, 24, 64])
def test_without_correlations_gptq_is_round_to_nearest(group):
    """For any diagonal, one with inputs that never were, and none at all."""
    w = weights(64, 12)
    expected = nearest(w, 4, group)
    scales = jnp.abs(weights(64, 1)[:, 0])
    for h in (jnp.diag(scales), jnp.diag(scales.at[5].set(0)), jnp.zeros((64, 64))):
        found = gptq(w, h, 4, group)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b)


def test_gptq_is_least_squares_row_by_row():
    """After each row is rounded, the others are where the outputs are nearest, by least squares."""
    rows, outputs, bits = 6, 5, 3
    x, w = correlated(rows, 40, 1).astype(np.float64), weights(rows, outputs, 1)
    damping = np.sqrt(DAMPING * np.mean(np.diagonal(x.T @ x))) * np.eye(rows)
    seen = np.concatenate([x, damping])
    grid = range_grid(w, bits, rows)
    wanted, left = seen @ np.asarray(w, np.float64), np.array(w, np.float64)
    codes = np.zeros((rows, outputs), np.uint8)
    for row in range(rows):
        codes[row] = grid.codes(jnp.asarray(left[row], jnp.float32)[None], bits, 1)[0]
        left[row] = grid.weights(jnp.asarray(codes[row])[None], 1)[0]
        rest = wanted - seen[:, : row + 1] @ left[: row + 1]
        left[row + 1 :] = np.linalg.lstsq(seen[:, row + 1 :], rest, rcond=None)[0]
    found = gptq(w, jnp.asarray(x.T @ x, jnp.float32), bits, rows)
    np.testing.assert_array_equal(found.weights(), grid.weights(jnp.asarray(codes), rows))


def test_gptq_between_round_to_nearest_and_the_best_codes():
    """Of all codes of four rows, by exhaustive search; on average over outputs nearer to it."""
    rows, outputs, bits = 4, 64, 2
    x, w = correlated(rows, 50, 2), weights(rows, outputs, 2)
    grid = range_grid(w, bits, rows)
    tries = np.array(list(itertools.product(range(2**bits), repeat=rows)), np.uint8)
    h = x.T @ x + DAMPING * np.mean(np.diagonal(x.T @ x)) * np.eye(rows)

    def losses(candidate_DxG: np.ndarray) -> np.ndarray:
        difference = candidate_DxG - np.asarray(w)
        return np.einsum("dg,de,eg->g", difference, h, difference)

    every = np.stack(
        [losses(np.asarray(grid.weights(jnp.tile(t[:, None], outputs), rows))) for t in tries]
    )
    best = every.min(axis=0)
    ours = losses(np.asarray(gptq(w, jnp.asarray(x.T @ x), bits, rows).weights()))
    plain = losses(np.asarray(nearest(w, bits, rows).weights()))
    assert (ours >= best * (1 - 1e-4)).all()
    assert ours.mean() - best.mean() < 0.5 * (plain.mean() - best.mean())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_ahead_of_round_to_nearest(bits):
    """On inputs that it has not seen, with groups and a remainder."""
    x, other = np.split(correlated(72, 1000, 3), 2)
    w = weights(72, 32, 3)
    found, plain = gptq(w, jnp.asarray(x.T @ x), bits, 16), nearest(w, bits, 16)
    assert error(other, w, found) < 0.5 * error(other, w, plain)


def test_gptq_of_a_stack_is_that_of_each():
    """One of the experts with fewer tokens than inputs, one with none."""
    w = jnp.stack([weights(24, 8, seed) for seed in range(3)])
    inputs = [correlated(24, tokens, tokens) for tokens in (100, 5)]
    h = jnp.stack([*(jnp.asarray(x.T @ x) for x in inputs), jnp.zeros((24, 24))])
    stack = gptq(w, h, 3, 8)
    for index in range(3):
        alone = gptq(w[index], h[index], 3, 8)
        for a, b in zip(jax.tree.leaves(stack[index]), jax.tree.leaves(alone), strict=True):
            np.testing.assert_array_equal(a, b)
    assert jnp.isfinite(stack.weights()).all()
    np.testing.assert_array_equal(stack[2].codes, nearest(w[2], 3, 8).codes)


def test_a_singular_matrix_is_damped():
    """All inputs the same: the factor is finite, and errors cancel."""
    x = np.tile(correlated(1, 50, 4), (1, 16)) * 1e3
    w = weights(16, 8, 4)
    found = gptq(w, jnp.asarray(x.T @ x), 3, 16)
    assert jnp.isfinite(found.weights()).all()
    assert error(x, w, found) < 0.1 * error(x, w, nearest(w, 3, 16))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_hqq_is_no_worse_than_round_to_nearest(bits):
    """In the mean error of every group, a remainder group included; and better in all together."""
    rng = np.random.default_rng(bits)
    w = jnp.asarray(rng.standard_t(3, size=(70, 16)) / 8, jnp.float32)
    found, plain = (
        np.asarray(by_group(jnp.abs(packed.weights() - w), 32)).sum(axis=-2)
        for packed in (half_quadratic(w, bits, 32), nearest(w, bits, 32))
    )
    assert (found <= plain * (1 + 1e-4)).all()
    assert found.sum() < 0.97 * plain.sum()
