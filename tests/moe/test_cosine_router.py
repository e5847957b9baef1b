"""X-MoE's router against loops in numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_moe.config import CosineRouterConfig, MoEConfig
from dit_moe.moe.routers import build_router
from dit_moe.moe.routers.cosine import CosineRouter
from dit_moe.moe.routing import Conditioning

T, D, E, RANK = 24, 16, 6, 4
X = jax.random.normal(jax.random.key(0), (T, D))
TRAIN = Conditioning(jnp.zeros(T, bool), tokens_per_image=T // 2, train=True)


def build(top_k: int = 2, **settings: float) -> CosineRouter:
    router = CosineRouterConfig(rank=RANK, **settings)
    built = build_router(MoEConfig(router=router, num_experts=E, top_k=top_k), D, nnx.Rngs(0))
    assert isinstance(built, CosineRouter)
    return built


def numpy_cosines(router: CosineRouter, scale: float) -> np.ndarray:
    """Scaled cosines [T, E], one after another."""
    kernel, bias = np.asarray(router.projection.kernel[...]), router.projection.bias[...]
    vectors, x = np.asarray(router.vectors[...], np.float64), np.asarray(X, np.float64)
    logits = np.zeros((T, len(vectors)))
    for t, e in np.ndindex(logits.shape):
        a, b = x[t] @ kernel + np.asarray(bias), vectors[e]
        logits[t, e] = scale * (a @ b) / math.sqrt(a @ a) / math.sqrt(b @ b)
    return logits


@pytest.mark.parametrize("top_k", [1, 2, E])
def test_routing(top_k: int):
    router = build(top_k)
    router.projection.bias[...] = jnp.linspace(-1, 1, RANK)
    logits = numpy_cosines(router, 2.0)
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    order = np.argsort(-scores, axis=1)[:, :top_k]
    routing = router(X, TRAIN)
    np.testing.assert_allclose(routing.scores, scores, rtol=1e-5)
    np.testing.assert_array_equal(routing.expert, order.reshape(-1))
    expected = np.take_along_axis(scores, order, axis=1).reshape(-1)
    np.testing.assert_allclose(routing.weight, expected, rtol=1e-5)
    assert set(routing.losses) == {"balance"}


def test_lengths_do_not_matter():
    router = build()
    before = router(X, TRAIN)
    router.vectors[...] *= jnp.arange(1.0, E + 1)[:, None]
    after = router(7 * X, TRAIN)
    np.testing.assert_array_equal(after.expert, before.expert)
    np.testing.assert_allclose(after.scores, before.scores, rtol=1e-5)


def test_the_learnt_scale_has_a_ceiling():
    router = build(largest_scale=5.0, initial_scale=3.0)
    for log_scale, scale in ((math.log(3), 3.0), (math.log(4.5), 4.5), (9.0, 5.0)):
        router.log_scale[...] = log_scale
        logits = numpy_cosines(router, scale)
        scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(router(X, TRAIN).scores, scores, rtol=1e-4)


def test_the_temperature_is_learnt():
    gradient = nnx.grad(lambda router: router(X, TRAIN).weight[::2].sum())(build())
    for parameter in jax.tree.leaves(gradient):
        assert jnp.abs(parameter).max() > 0
