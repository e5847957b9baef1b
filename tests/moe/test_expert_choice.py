"""Routers in which experts choose the tokens of an image, against loops in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_moe.config import (
    ExpertChoiceRouterConfig,
    MoEConfig,
    PrototypeExpertChoiceRouterConfig,
)
from dit_moe.moe import losses
from dit_moe.moe.routers import build_router
from dit_moe.moe.routing import Conditioning, Routing

N, S, D, E = 3, 10, 16, 4
X = jax.random.normal(jax.random.key(0), (N * S, D))
NULL_N = np.array([False, True, False])


def conditioning() -> Conditioning:
    return Conditioning(is_null=jnp.repeat(jnp.asarray(NULL_N), S), tokens_per_image=S)


def assignments(routing: Routing, none: int) -> dict[tuple[int, int], float]:
    """Weight by (token, expert), of the slots in use."""
    triples = zip(*map(np.asarray, (routing.token, routing.expert, routing.weight)), strict=True)
    used = [(int(t), int(e), float(w)) for t, e, w in triples if e < none]
    assert len({(t, e) for t, e, _ in used}) == len(used)
    return {(t, e): w for t, e, w in used}


def assert_assignments(actual: dict, expected: dict) -> None:
    assert actual.keys() == expected.keys()
    for pair, weight in expected.items():
        np.testing.assert_allclose(actual[pair], weight, rtol=1e-4, err_msg=str(pair))


def chosen(scores_SxE: np.ndarray, image: int, capacity: int) -> dict[tuple[int, int], float]:
    """The top tokens of each expert in one image."""
    return {
        (image * S + int(s), e): scores_SxE[s, e]
        for e in range(E)
        for s in np.argsort(-scores_SxE[:, e])[:capacity]
    }


@pytest.mark.parametrize(("top_k", "capacity"), [(1, 2), (2, 5), (4, 10)])
def test_expert_choice(top_k, capacity):
    config = MoEConfig(router=ExpertChoiceRouterConfig(), num_experts=E, top_k=top_k)
    router = build_router(config, D, nnx.Rngs(0))
    routing = router(X, conditioning())
    logits = np.asarray(X, np.float64) @ np.asarray(router.kernel[...], np.float64)
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(routing.scores, scores, rtol=1e-5)
    expected = {}
    for n in range(N):
        expected |= chosen(scores[n * S : (n + 1) * S], n, capacity)
    assert_assignments(assignments(routing, E), expected)
    # Image by image, in equal parts.
    np.testing.assert_array_equal(routing.token // S, np.repeat(np.arange(N), E * capacity))


def test_initialisation():
    config = MoEConfig(router=ExpertChoiceRouterConfig(), num_experts=64, top_k=2)
    kernel = np.asarray(build_router(config, 256, nnx.Rngs(0)).kernel[...])
    np.testing.assert_allclose(kernel.std(), 0.006, rtol=0.02)


@pytest.mark.parametrize(
    ("activation", "unconditional", "top_k", "capacity"),
    [
        ("identity", True, 1, 2),
        ("identity", False, 1, 2),
        ("softmax", True, 3, 7),
        ("sigmoid", False, 3, 7),
    ],
)
def test_prototype_expert_choice(activation, unconditional, top_k, capacity):
    config = MoEConfig(
        router=PrototypeExpertChoiceRouterConfig(
            activation=activation, contrastive_coef=0.5, contrastive_temperature=0.1
        ),
        num_experts=E,
        top_k=top_k,
        unconditional_expert=unconditional,
    )
    router = build_router(config, D, nnx.Rngs(0))
    routing = router(X, conditioning())
    x, p = np.asarray(X, np.float64), np.asarray(router.prototypes[...], np.float64)
    cosine = x @ p.T / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(p, axis=1)
    exp_NxSxE = np.exp(cosine).reshape(N, S, E)
    scores = {
        "identity": cosine,
        # Over the tokens of an image.
        "softmax": (exp_NxSxE / exp_NxSxE.sum(axis=1, keepdims=True)).reshape(N * S, E),
        "sigmoid": 1 / (1 + np.exp(-cosine)),
    }[activation]
    np.testing.assert_allclose(routing.scores, scores, atol=1e-6)

    expected, contrastive = {}, []
    for n in range(N):
        if unconditional and NULL_N[n]:
            expected |= {(n * S + s, E): 1.0 for s in range(S)}
            continue
        own = chosen(scores[n * S : (n + 1) * S], n, capacity)
        expected |= own
        means = [np.mean([x[t] for t, e in own if e == i], axis=0) for i in range(E)]
        means = np.stack([m / np.linalg.norm(m) for m in means])
        logits = p / np.linalg.norm(p, axis=1)[:, None] @ means.T / 0.1
        contrastive += list(np.log(np.exp(logits).sum(axis=1)) - np.diag(logits))
    assert_assignments(assignments(routing, E + unconditional), expected)
    # Every image has the slots of its larger need, and unused slots point at a token of its own.
    slots = max(E * capacity, S) if unconditional else E * capacity
    np.testing.assert_array_equal(routing.token // S, np.repeat(np.arange(N), slots))
    unused = np.asarray(routing.expert) >= E + unconditional
    np.testing.assert_array_equal(np.asarray(routing.weight)[unused], 0)
    np.testing.assert_allclose(
        routing.losses["routing_contrastive"], 0.5 * np.mean(contrastive), rtol=1e-4
    )


def test_an_expert_takes_a_token_of_even_the_smallest_image():
    config = MoEConfig(router=PrototypeExpertChoiceRouterConfig(), num_experts=E, top_k=1)
    routing = build_router(config, D, nnx.Rngs(0))(X[:2], Conditioning(jnp.zeros(2, bool), 2))
    np.testing.assert_array_equal(np.sort(np.asarray(routing.expert)), np.arange(E))


def test_contrastive_gradient_reaches_tokens_and_prototypes():
    place = jnp.asarray(np.stack([[np.arange(5) + e for e in range(E)]] * N))

    def loss(x, prototypes):
        return losses.image_contrastive_loss(
            x.reshape(N, S, D), prototypes, place, ~jnp.asarray(NULL_N), 0.5
        )

    prototypes = jax.random.normal(jax.random.key(1), (E, D))
    dx, dprototypes = jax.grad(loss, argnums=(0, 1))(X, prototypes)
    assert np.linalg.norm(dprototypes) > 0
    by_image = np.linalg.norm(np.asarray(dx).reshape(N, S * D), axis=1)
    np.testing.assert_array_equal(by_image > 0, ~NULL_N)
