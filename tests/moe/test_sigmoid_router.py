"""DSMoE's router against numpy: choice by score plus bias, weights without it, balance by steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_moe.config import MoEConfig, SigmoidTopKRouterConfig
from dit_moe.moe.routers import build_router
from dit_moe.moe.routers.token_choice import SigmoidTopKRouter
from dit_moe.moe.routing import Conditioning

T, D, E = 96, 16, 6
# Tokens with a common part, which most of them would take to the same experts.
X = jax.random.normal(jax.random.key(0), (T, D)) + jax.random.normal(jax.random.key(1), (D,))
SAMPLE = Conditioning(jnp.zeros(T, bool), tokens_per_image=T // 2)
TRAIN = dataclasses.replace(SAMPLE, train=True)
BIAS = np.linspace(-0.5, 0.5, E)


def build(top_k: int, bias_rate: float = 0.01) -> SigmoidTopKRouter:
    settings = SigmoidTopKRouterConfig(scale=2.5, bias_rate=bias_rate)
    config = MoEConfig(router=settings, num_experts=E, top_k=top_k)
    router = build_router(config, D, nnx.Rngs(0))
    assert isinstance(router, SigmoidTopKRouter)
    router.bias[...] = jnp.asarray(BIAS, jnp.float32)
    return router


def numpy_routing(router: SigmoidTopKRouter, top_k: int) -> tuple[np.ndarray, ...]:
    """Scores [T, E], and experts and weights [T, K]."""
    scores = 1 / (1 + np.exp(-np.asarray(X, np.float64) @ np.asarray(router.kernel[...])))
    expert = np.argsort(-(scores + BIAS), axis=1)[:, :top_k]
    weight = np.take_along_axis(scores, expert, axis=1)
    if top_k > 1:
        weight /= weight.sum(axis=1, keepdims=True)
    return scores, expert, 2.5 * weight


@pytest.mark.parametrize("top_k", [1, 2, E])
def test_routing(top_k):
    router = build(top_k)
    routing = router(X, SAMPLE)
    scores, expert, weight = numpy_routing(router, top_k)
    np.testing.assert_allclose(routing.scores, scores, rtol=1e-5)
    np.testing.assert_array_equal(routing.token, np.repeat(np.arange(T), top_k))
    np.testing.assert_array_equal(routing.expert, expert.reshape(-1))
    np.testing.assert_allclose(routing.weight, weight.reshape(-1), rtol=1e-5)
    assert not routing.losses
    assert not routing.next_state
    if top_k == 2:
        by_score = np.argsort(-scores, axis=1)[:, :top_k]
        assert (np.sort(by_score) != np.sort(expert)).any()  # the bias decides, too


def test_bias_of_a_step():
    router = build(top_k=2)
    _, expert, _ = numpy_routing(router, 2)
    load = np.bincount(expert.reshape(-1), minlength=E)
    expected = BIAS + 0.01 * np.sign(2 * T / E - load)
    np.testing.assert_allclose(router(X, TRAIN).next_state["bias"], expected, rtol=1e-6)
    still = build(top_k=2, bias_rate=0)(X, TRAIN).next_state["bias"]
    np.testing.assert_array_equal(still, np.float32(BIAS))


def test_steps_even_the_load():
    router = build(top_k=2)
    router.bias[...] = jnp.zeros(E)
    before = np.bincount(router(X, SAMPLE).expert, minlength=E)
    step = nnx.jit(lambda router: router(X, TRAIN).next_state["bias"])
    for _ in range(120):
        router.bias[...] = step(router)
    after = np.bincount(router(X, SAMPLE).expert, minlength=E)
    assert before.max() > 1.3 * 2 * T / E
    assert after.max() < 1.15 * 2 * T / E


def test_gradient_passes_the_weights_and_not_the_bias():
    def loss(router):
        return jnp.sum(router(X, TRAIN).weight[::2])

    flat = nnx.to_flat_state(nnx.grad(loss)(build(top_k=2)))
    gradient = {".".join(map(str, path)): variable[...] for path, variable in flat}
    np.testing.assert_array_equal(gradient["bias"], 0)
    assert np.abs(gradient["kernel"]).max() > 0
