"""The backward passes of our own, beside autodiff of the plain equations and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dit_moe.nn.attention import LONG, _mix_on_cpu
from dit_moe.nn.linear import affine, product
from dit_moe.nn.modulation import modulate

RNG = np.random.default_rng(0)


def draw(*shape: int, dtype: str = "float32") -> jax.Array:
    return jnp.asarray(RNG.standard_normal(shape), dtype)


def plain_modulate(x, shift, scale):
    """LayerNorm with eps 1e-6, then x (1 + scale) + shift, as DiT writes it."""
    mean = x.mean(axis=-1, keepdims=True)
    deviation = jnp.sqrt(((x - mean) ** 2).mean(axis=-1, keepdims=True) + 1e-6)
    return (x - mean) / deviation * (1 + scale[:, None]) + shift[:, None]


def plain_attention(q, k, v):
    score = jnp.einsum("nshk,nthk->nhst", q, k) / np.sqrt(q.shape[-1])
    return jnp.einsum("nhst,nthk->nshk", jax.nn.softmax(score), v)


CASES = {
    "affine": (affine, lambda x, w, b: x @ w + b, [(2, 3, 5), (5, 4), (4,)]),
    "affine of rows": (affine, lambda x, w, b: x @ w + b, [(3, 5), (5, 4), (4,)]),
    "product": (product, lambda x, w: x @ w, [(2, 3, 5), (5, 4)]),
    "modulate": (modulate, plain_modulate, [(2, 3, 8), (2, 8), (2, 8)]),
    "attention": (_mix_on_cpu, plain_attention, [(2, LONG, 2, 8)] * 3),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_plain_equation(name):
    ours, plain, shapes = CASES[name]
    arrays = [draw(*shape) for shape in shapes]
    y, pull = jax.vjp(ours, *arrays)
    expected, pull_plain = jax.vjp(plain, *arrays)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    dy = draw(*y.shape)
    for found, right in zip(pull(dy), pull_plain(dy), strict=True):
        assert found.dtype == right.dtype
        np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["affine", "product", "modulate"])
def test_gradients_are_finite_differences_in_float64(name):
    ours, _, shapes = CASES[name]
    with jax.enable_x64(True):
        arrays = [draw(*shape, dtype="float64") for shape in shapes]
        check_grads(ours, arrays, order=1, modes=["rev"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_sums_in_float32(name):
    """What is rounded is rounded once: half a unit in the last place of the largest, 2^-8."""
    ours, plain, shapes = CASES[name]
    arrays = [draw(*shape, dtype="bfloat16") for shape in shapes]
    wide = [a.astype(jnp.float32) for a in arrays]
    y, pull = jax.vjp(ours, *arrays)
    expected, pull_plain = jax.vjp(plain, *wide)
    assert y.dtype == jnp.bfloat16
    dy = draw(*y.shape, dtype="bfloat16")
    found = [y, *pull(dy)]
    right = [expected, *pull_plain(dy.astype(jnp.float32))]
    for a, b in zip(found, right, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=2**-6 * float(jnp.abs(b).max()))
