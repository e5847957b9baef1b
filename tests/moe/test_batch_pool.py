"""DiffMoE's router in training and when sampling, against numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_moe.config import BatchPoolRouterConfig, MoEConfig
from dit_moe.moe.assignments import arrange_by_image
from dit_moe.moe.routers import build_router
from dit_moe.moe.routers.batch_pool import BatchPoolRouter
from dit_moe.moe.routing import Conditioning
from tests.moe.test_expert_choice import assert_assignments, assignments

T, D, E = 24, 16, 4
CAPACITY = 6  # of T / E tokens, top_k times
X = jax.random.normal(jax.random.key(0), (T, D))
TRAIN = Conditioning(jnp.zeros(T, bool), tokens_per_image=T // 2, train=True)
SAMPLE = dataclasses.replace(TRAIN, train=False)


def build(**settings) -> BatchPoolRouter:
    config = MoEConfig(
        router=BatchPoolRouterConfig(capacity_coef=0.5, threshold_decay=0.75, **settings),
        num_experts=E,
        top_k=1,
    )
    router = build_router(config, D, nnx.Rngs(0))
    assert isinstance(router, BatchPoolRouter)
    router.threshold[...] = jnp.linspace(0.3, 0.6, E)
    return router


def numpy_scores(router: BatchPoolRouter) -> tuple[np.ndarray, np.ndarray]:
    """Scores and predictions [T, E]."""
    x = np.asarray(X, np.float64)
    exp = np.exp(x @ np.asarray(router.kernel[...], np.float64))
    first, second = router.predictor.dense_in, router.predictor.dense_out
    hidden = x @ np.asarray(first.kernel[...]) + np.asarray(first.bias[...])
    hidden = hidden / (1 + np.exp(-hidden))
    logits = hidden @ np.asarray(second.kernel[...]) + np.asarray(second.bias[...])
    return exp / exp.sum(axis=1, keepdims=True), 1 / (1 + np.exp(-logits))


def test_training_takes_the_top_tokens_of_the_batch():
    router = build()
    routing = router(X, TRAIN)
    scores, prediction = numpy_scores(router)
    expected = {
        (int(t), e): scores[t, e] for e in range(E) for t in np.argsort(-scores[:, e])[:CAPACITY]
    }
    assert_assignments(assignments(routing, E), expected)
    assert len(routing.token) == E * CAPACITY
    mask = np.zeros((T, E))
    for pair in expected:
        mask[pair] = 1
    entropy = -(mask * np.log(prediction) + (1 - mask) * np.log(1 - prediction))
    np.testing.assert_allclose(routing.losses["capacity"], 0.5 * entropy.mean(), rtol=1e-5)

    last = np.sort(prediction, axis=0)[-CAPACITY]
    threshold = np.linspace(0.3, 0.6, E)
    np.testing.assert_allclose(
        routing.next_state["threshold"], 0.75 * threshold + 0.25 * last, rtol=1e-5
    )
    np.testing.assert_allclose(
        routing.metrics["predicted_capacity"], (prediction > threshold).sum() / T, rtol=1e-6
    )


@pytest.mark.parametrize("inference", ["token", "batch"])
def test_sampling_takes_what_the_predictor_says(inference):
    router = build(inference=inference)
    routing = router(X, SAMPLE)
    scores, prediction = numpy_scores(router)
    passes = prediction > np.linspace(0.3, 0.6, E)
    assert 0 < passes.sum() < T * E
    expected = {}
    for e in range(E):
        tokens = np.flatnonzero(passes[:, e])
        if inference == "batch":
            tokens = np.argsort(-scores[:, e])[: len(tokens)]
        expected |= {(int(t), e): scores[t, e] for t in tokens}
    assert_assignments(assignments(routing, E), expected)
    assert not routing.losses
    assert not routing.next_state


def test_the_same_assignments_by_image():
    routing = build()(X, TRAIN)
    arranged = arrange_by_image(routing, E)
    assert_assignments(assignments(arranged, E), assignments(routing, E))
    np.testing.assert_array_equal(arranged.token, np.repeat(np.arange(T), E))
    assert arranged.by_image
    assert arrange_by_image(arranged, E) is arranged


def test_the_loss_trains_nothing_but_the_predictor():
    router = build()

    def loss(router, x):
        return router(x, TRAIN).losses["capacity"]

    gradient, dx = nnx.grad(loss, argnums=(0, 1))(router, X)
    flat = {".".join(map(str, path)): v[...] for path, v in nnx.to_flat_state(gradient)}
    np.testing.assert_array_equal(dx, 0)
    for path, value in flat.items():
        assert (np.abs(value).max() > 0) == path.startswith("predictor."), path


def test_thresholds_converge_to_the_quantile():
    router = build()
    step = nnx.jit(lambda router: router(X, TRAIN).next_state["threshold"])
    for _ in range(60):
        router.threshold[...] = step(router)
    _, prediction = numpy_scores(router)
    np.testing.assert_allclose(
        router.threshold[...], np.sort(prediction, axis=0)[-CAPACITY], rtol=1e-5
    )
    # One token of each expert is the threshold, and does not pass it.
    counts = np.bincount(router(X, SAMPLE).expert, minlength=E + 1)[:E]
    assert set(counts) <= {CAPACITY - 1, CAPACITY}
