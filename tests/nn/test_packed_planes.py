"""Matrices that can be read at fewer bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.nn.packed import Packed, range_grid, unpack
from dit_moe.nn.packed_planes import PackedPlanes, top_bits

GROUP = 8


W = jax.random.normal(jax.random.key(0), (3, 44, 6))
"""Of 44 inputs, so that the last group is not full."""


def rounded(w_DxG: jax.Array, bits: int) -> Packed:
    return Packed.of(w_DxG, range_grid(w_DxG, bits, GROUP), bits, GROUP)


def error(w_DxG: jax.Array, packed) -> float:
    return float(jnp.square(packed.weights() - w_DxG).mean())


def test_planes_by_hand():
    """Each has the signs of what is left and their mean size; the first ones alone are what a
    matrix with fewer planes has, to the bit; and errors fall."""
    base = rounded(W, 2)
    nested = PackedPlanes.of(W, base, 3)
    assert nested.shape == W.shape
    found, errors = np.asarray(base.weights(), np.float64), [error(W, base)]
    for number in (1, 2, 3):
        left = np.asarray(W) - found
        for first in range(0, 44, GROUP):
            own = left[:, first : first + GROUP]
            scale = np.abs(own).mean(axis=1, keepdims=True)
            np.testing.assert_allclose(
                nested.scale[:, number - 1, first // GROUP], scale[:, 0], rtol=2e-3
            )
            stored = np.asarray(nested.scale[:, number - 1, first // GROUP], np.float64)[:, None]
            found[:, first : first + GROUP] += np.where(own > 0, stored, -stored)
        fewer = nested.fewer(number)
        np.testing.assert_allclose(fewer.weights(), found, atol=1e-6)
        again = PackedPlanes.of(W, base, number)
        for a, b in zip(jax.tree.leaves(fewer), jax.tree.leaves(again), strict=True):
            np.testing.assert_array_equal(a, b)
        errors.append(error(W, fewer))
        np.testing.assert_array_equal(fewer.expert(1), fewer.weights()[1])
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 8
    assert nested.fewer(0) is base
    # A plane costs a bit a weight, and a scale a group.
    assert nested.planes.nbytes == 3 * 3 * 6 * 6
    assert nested.scale.nbytes == 3 * 3 * 6 * 6 * 2


@pytest.mark.parametrize("bits", [2, 4, 7, 8])
def test_top_bits_by_hand(bits):
    """Codes, and what they stand for; for few bits, rounding is better than cutting off."""
    packed = rounded(W, 8)
    fewer = top_bits(packed, bits)
    codes = np.asarray(unpack(packed.codes, 8, 44), np.float64)
    factor = 2.0 ** (8 - bits)
    expected = np.clip(np.floor(codes / factor + 0.5), 0, 2**bits - 1)
    np.testing.assert_array_equal(unpack(fewer.codes, bits, 44), expected)
    np.testing.assert_allclose(
        fewer.weights(), packed.grid.weights(jnp.asarray(expected * factor), GROUP), rtol=1e-6
    )
    cut = packed.grid.weights(jnp.asarray(np.floor(codes / factor) * factor), GROUP)
    if bits <= 4:
        assert error(W, fewer) < float(jnp.square(cut - W).mean())
    assert error(W, fewer) < 2.5 * error(W, rounded(W, bits))
