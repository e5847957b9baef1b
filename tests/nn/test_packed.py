"""Codes in bytes, and what they mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.nn.packed import (
    Grid,
    Packed,
    PackedMatrix,
    by_group,
    byte_rows,
    pack,
    packed_bytes,
    range_grid,
    unpack,
)


@pytest.mark.parametrize("bits", range(1, 9))
def test_packing_is_exact(bits):
    """For every number of bits and rows that fill no byte, with and without leading axes."""
    rng = np.random.default_rng(bits)
    for shape in ((1, 3), (7, 5), (64, 2), (2, 3, 13, 4)):
        codes = rng.integers(0, 2**bits, shape).astype(np.uint8)
        packed = pack(jnp.asarray(codes), bits)
        assert packed.dtype == jnp.uint8
        assert packed.shape == (*shape[:-2], byte_rows(shape[-2], bits), shape[-1])
        np.testing.assert_array_equal(unpack(packed, bits, shape[-2]), codes)


def test_the_order_of_bits():
    """Seven bits: the upper 4 of two inputs in a byte, then 2 of four, then 1 of eight."""
    codes = np.array([0b1010_01_1, 0b0110_10_0, 0b1111_11_1]).astype(np.uint8)[:, None]
    expected = [0b0110_1010, 0b0000_1111, 0b00_11_10_01, 0b00000_1_0_1]
    assert pack(jnp.asarray(codes), 7)[:, 0].tolist() == expected


@pytest.mark.parametrize("bits", range(2, 9))
def test_whole_bytes_take_just_their_bits(bits):
    assert byte_rows(64, bits) == 8 * bits


@pytest.mark.parametrize(("bits", "group"), [(8, 64), (4, 5), (3, 32), (2, 7)])
def test_nearest_is_within_half_a_step(bits, group):
    """Of each weight, with a remainder group, and with scales as they are stored."""
    w = jax.random.normal(jax.random.key(0), (2, 33, 6))
    packed = Packed.of(w, range_grid(w, bits, group), bits, group)
    step = np.repeat(np.asarray(packed.grid.scale, np.float32), group, axis=-2)[:, :33]
    error = np.abs(np.asarray(packed.weights() - w))
    # The zero is a code, so that the last codes of a group may be half a step off its ends.
    assert (error <= step * (1 + 1e-5)).all()
    assert (error <= step / 2 * (1 + 1e-5)).mean() > (0.9 if bits > 2 else 0.75)
    assert packed.shape == w.shape
    sizes = sum(leaf.nbytes for leaf in jax.tree.leaves(packed))
    assert sizes == packed_bytes(w.shape, bits, group)
    own = packed[1]
    assert own.shape == (33, 6)
    np.testing.assert_array_equal(own.weights(), packed.weights()[1])


def test_what_is_zero_stays_zero():
    w = jax.random.normal(jax.random.key(1), (64, 8)) + 0.7
    w = jnp.where(jax.random.bernoulli(jax.random.key(2), 0.5, w.shape), w, 0).at[:, 3].set(0)
    for bits in (2, 3, 4, 8):
        weights = Packed.of(w, range_grid(w, bits, 16), bits, 16).weights()
        assert (weights[w == 0] == 0).all()


def test_tiny_weights_have_a_scale():
    """Float16 has no scale below 6e-8; what is lost is no more."""
    w = jnp.full((4, 1), 1e-9).at[0].set(3e-6)
    weights = Packed.of(w, range_grid(w, 8, 4), 8, 4).weights()
    assert jnp.isfinite(weights).all()
    assert jnp.abs(weights - w).max() <= 6e-8


def test_groups_are_filled_with_zeros():
    w = jnp.arange(1.0, 11).reshape(5, 2)
    assert by_group(w, 3).tolist() == [[[1, 2], [3, 4], [5, 6]], [[7, 8], [9, 10], [0, 0]]]


def test_codes_and_weights_of_a_grid():
    """By hand: two groups of two inputs, one output."""
    grid = Grid(jnp.array([[0.5], [2.0]], jnp.float16), jnp.array([[1.0], [0.0]], jnp.float16))
    w = jnp.array([[0.3], [-9.0], [2.9], [99.0]])
    codes = grid.codes(w, 2, 2)
    assert codes[:, 0].tolist() == [2, 0, 1, 3]
    assert grid.weights(codes, 2)[:, 0].tolist() == [0.5, -0.5, 2.0, 6.0]


def test_a_packed_matrix_reads_as_a_matrix():
    w = jax.random.normal(jax.random.key(3), (8, 4))
    matrix = PackedMatrix(w, bits=8, group=4)
    assert matrix[...].dtype == jnp.float32
    np.testing.assert_allclose(matrix[...], w, atol=0.01)
    np.testing.assert_array_equal(matrix[2], matrix[...][2])
