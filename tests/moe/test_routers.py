import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_moe.config import (
    BatchPoolRouterConfig,
    CosineRouterConfig,
    ExpertChoiceRouterConfig,
    ExpertRaceRouterConfig,
    MoEConfig,
    NoisyTopKRouterConfig,
    PrototypeExpertChoiceRouterConfig,
    PrototypeRouterConfig,
    SigmoidTopKRouterConfig,
    SoftRouterConfig,
)
from dit_moe.moe.assignments import ExpertRanges
from dit_moe.moe.losses import mean_similarity
from dit_moe.moe.routers import build_router
from dit_moe.moe.routing import Conditioning, Routing
from dit_moe.moe.statistics import routing_statistics

T, D, E = 24, 16, 6
X = jax.random.normal(jax.random.key(0), (T, D))


def conditioning(is_null: jax.Array) -> Conditioning:
    return Conditioning(is_null=is_null, tokens_per_image=T // 2)


CONDITIONAL = conditioning(jnp.zeros(T, bool))


def prototype_config(activation="identity", top_k=1, unconditional=True) -> MoEConfig:
    return MoEConfig(
        router=PrototypeRouterConfig(activation=activation),
        num_experts=E,
        top_k=top_k,
        unconditional_expert=unconditional,
    )


@pytest.mark.parametrize("top_k", [1, 2, E])
def test_top_k_router(top_k):
    router = build_router(MoEConfig(num_experts=E, top_k=top_k), D, nnx.Rngs(0))
    routing = router(X, CONDITIONAL)
    logits = np.asarray(X, np.float64) @ np.asarray(router.kernel[...], np.float64)
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    order = np.argsort(-scores, axis=1)[:, :top_k]
    np.testing.assert_allclose(routing.scores, scores, rtol=1e-5)
    np.testing.assert_array_equal(routing.token, np.repeat(np.arange(T), top_k))
    np.testing.assert_array_equal(routing.expert, order.reshape(-1))
    # Not renormalised.
    np.testing.assert_allclose(
        routing.weight, np.take_along_axis(scores, order, axis=1).reshape(-1), rtol=1e-5
    )


def test_top_k_router_initialisation_is_kaiming_uniform():
    router = build_router(MoEConfig(num_experts=64, top_k=2), 256, nnx.Rngs(0))
    kernel = np.asarray(router.kernel[...])
    bound = 1 / np.sqrt(256)  # sqrt(6 / ((1 + 5) fan_in))
    assert np.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.02)


@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("activation", ["identity", "softmax", "sigmoid"])
def test_prototype_router(activation, top_k):
    router = build_router(prototype_config(activation, top_k), D, nnx.Rngs(0))
    is_null = jnp.arange(T) % 3 == 0
    routing = router(X, conditioning(is_null))
    x, p = np.asarray(X, np.float64), np.asarray(router.prototypes[...], np.float64)
    cosine = x @ p.T / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(p, axis=1)
    scores = {
        "identity": cosine,
        "softmax": np.exp(cosine) / np.exp(cosine).sum(axis=1, keepdims=True),
        "sigmoid": 1 / (1 + np.exp(-cosine)),
    }[activation]
    np.testing.assert_allclose(routing.scores, scores, atol=1e-6)
    expert, weight = routing.expert.reshape(T, top_k), routing.weight.reshape(T, top_k)
    for t in range(T):
        if is_null[t]:
            # The slots that are not needed point past all experts, at no cost.
            assert expert[t].tolist() == [E] + [E + 1] * (top_k - 1)
            assert weight[t].tolist() == [1.0] + [0.0] * (top_k - 1)
        else:
            order = np.argsort(-scores[t])[:top_k]
            np.testing.assert_array_equal(expert[t], order)
            np.testing.assert_allclose(weight[t], scores[t][order], rtol=1e-4)


def test_without_unconditional_expert_null_tokens_are_routed_like_others():
    router = build_router(prototype_config(unconditional=False), D, nnx.Rngs(0))
    null = router(X, conditioning(jnp.ones(T, bool)))
    jax.tree.map(np.testing.assert_array_equal, null, router(X, CONDITIONAL))


@pytest.mark.parametrize(
    "config",
    [
        MoEConfig(num_experts=E),
        prototype_config(),
        MoEConfig(num_experts=E, router=ExpertChoiceRouterConfig()),
        MoEConfig(num_experts=E, router=PrototypeExpertChoiceRouterConfig()),
        MoEConfig(num_experts=E, router=BatchPoolRouterConfig()),
        MoEConfig(num_experts=E, router=SigmoidTopKRouterConfig()),
        MoEConfig(num_experts=E, router=NoisyTopKRouterConfig()),
        MoEConfig(num_experts=E, router=CosineRouterConfig()),
        MoEConfig(num_experts=E, top_k=1, router=SoftRouterConfig()),
        MoEConfig(num_experts=E, router=ExpertRaceRouterConfig()),
    ],
    ids=lambda config: config.router.name,
)
def test_routing_is_float32_for_bfloat16_tokens(config):
    router = build_router(config, D, nnx.Rngs(0))
    routing = router(X.astype(jnp.bfloat16), CONDITIONAL)
    assert routing.scores.dtype == routing.weight.dtype == jnp.float32
    assert all(loss.dtype == jnp.float32 for loss in routing.losses.values())
    expected = router(X.astype(jnp.bfloat16).astype(jnp.float32), CONDITIONAL)
    jax.tree.map(np.testing.assert_array_equal, routing, expected)


def test_statistics():
    routing = Routing(
        token=jnp.arange(4)[None],
        expert=jnp.array([[0, 0, 2, 3]]),
        weight=jnp.array([[0.5, 0.5, 0.5, 0.0]]),  # the last slot is unused
        scores=jnp.array([[[1.0, 0, 0], [1, 1, 1], [0, -1, 1], [1, 1, 0]]]),
        losses={},
        metrics={"predicted_capacity": jnp.array([1.5])},
    )
    statistics = routing_statistics(routing, ExpertRanges(4, 0, ()))
    np.testing.assert_allclose(statistics["load"], [[2 / 3, 0, 1 / 3, 0]], rtol=1e-6)
    np.testing.assert_allclose(statistics["busiest"], [2 / 3], rtol=1e-6)
    expected = np.mean([0, np.log(3), 0, np.log(2)]) / np.log(3)
    np.testing.assert_allclose(statistics["entropy"], [expected], rtol=1e-5)
    np.testing.assert_allclose(statistics["capacity"], [3 / 4])
    np.testing.assert_array_equal(statistics["predicted_capacity"], [1.5])


def test_prototype_similarity():
    prototypes = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
    unit = prototypes / np.linalg.norm(prototypes, axis=-1, keepdims=True)
    expected = [np.mean([a @ b for i, a in enumerate(u) for b in np.delete(u, i, 0)]) for u in unit]
    found = [mean_similarity(jnp.asarray(p)) for p in prototypes]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
