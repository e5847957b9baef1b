"""Noisy top-k against loops in numpy; its noise, and what a step makes of its counter."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_moe.config import MoEConfig, NoisyTopKRouterConfig
from dit_moe.config.routers import Gate
from dit_moe.moe.routers import build_router
from dit_moe.moe.routers.noisy import NoisyTopKRouter
from dit_moe.moe.routing import Conditioning

T, D, E, K = 24, 16, 6, 2
X = jax.random.normal(jax.random.key(0), (T, D))
SAMPLE = Conditioning(jnp.zeros(T, bool), tokens_per_image=T // 2)
TRAIN = dataclasses.replace(SAMPLE, train=True)


def build(gate: Gate = "softmax", num_experts: int = E, top_k: int = K) -> NoisyTopKRouter:
    moe = MoEConfig(router=NoisyTopKRouterConfig(gate=gate), num_experts=num_experts, top_k=top_k)
    router = build_router(moe, D, nnx.Rngs(0))
    assert isinstance(router, NoisyTopKRouter)
    router.noise_kernel[...] = jax.random.normal(jax.random.key(1), (D, num_experts))
    return router


def numpy_routing(router: NoisyTopKRouter, gate: str, noise: np.ndarray) -> dict:
    """Weights by token and expert: the gate of the K largest noisy logits alone."""
    x = np.asarray(X, np.float64)
    found = {}
    for t in range(T):
        clean = x[t] @ np.asarray(router.kernel[...])
        spread = x[t] @ np.asarray(router.noise_kernel[...])
        h = [clean[e] + noise[t, e] * math.log1p(math.exp(spread[e])) for e in range(E)]
        best = sorted(range(E), key=lambda e: -h[e])[:K]
        total = sum(math.exp(h[e]) for e in best)
        for e in best:
            found[t, e] = {
                "softmax": math.exp(h[e]) / total,
                "sigmoid": 1 / (1 + math.exp(-h[e])),
                "identity": h[e],
            }[gate]
    return found


@pytest.mark.parametrize("gate", ["softmax", "sigmoid", "identity"])
@pytest.mark.parametrize("train", [True, False])
def test_routing(gate: Gate, train: bool):
    router = build(gate)
    routing = router(X, TRAIN if train else SAMPLE)
    key = jax.random.fold_in(jax.random.key(0), int(router.draw[0]))
    noise = np.asarray(jax.random.normal(key, (T, E))) if train else np.zeros((T, E))
    expected = numpy_routing(router, gate, noise)
    pairs = zip(routing.token.tolist(), routing.expert.tolist(), strict=True)
    found = dict(zip(pairs, routing.weight.tolist(), strict=True))
    assert found == pytest.approx(expected, rel=1e-4)
    assert bool(routing.next_state) == train


def test_a_fresh_router_has_noise_of_scale_log_2():
    many = 4096
    router = build(num_experts=8, top_k=8)
    router.noise_kernel[...] = jnp.zeros((D, 8))
    router.kernel[...] = jnp.zeros((D, 8))
    conditioning = dataclasses.replace(TRAIN, is_null=jnp.zeros(many, bool))
    logits = jnp.log(router(jnp.ones((many, D)), conditioning).scores)
    # Up to a constant of each token, which costs one of eight degrees of freedom.
    centred = logits - logits.mean(axis=1, keepdims=True)
    spread = math.sqrt(float(jnp.square(centred).sum()) / (7 * many))
    assert spread == pytest.approx(math.log(2), rel=0.02)


def test_each_step_draws_anew_and_the_counter_turns_over():
    router = build()
    first = router(X, TRAIN)
    router.draw[...] = first.next_state["draw"]
    second = router(X, TRAIN)
    assert jnp.abs(first.scores - second.scores).max() > 0.01
    router.draw[...] = jnp.full(1, 2.0**24 - 1)
    assert router(X, TRAIN).next_state["draw"] == 0


def test_gradients_reach_both_matrices_and_not_the_counter():
    gradient = nnx.grad(lambda router: router(X, TRAIN).weight[::2].sum())(build())
    flat = {path[0]: value[...] for path, value in nnx.to_flat_state(gradient)}
    assert jnp.abs(flat["kernel"]).max() > 0
    assert jnp.abs(flat["noise_kernel"]).max() > 0
    assert flat["draw"] == 0
