"""SoftMoE: slots of mixed tokens, against loops in numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_moe.config import ModelConfig, MoEConfig, SoftRouterConfig
from dit_moe.moe.layer import MoELayer
from dit_moe.moe.routing import Conditioning
from dit_moe.moe.statistics import layer_statistics
from dit_moe.plan.flops import image_flops
from tests.moe.test_facts import parameters_of
from tests.tiny import SOFT_MOE, tiny

N, S, D, E, SLOTS = 3, 8, 16, 4, 2
P = E * SLOTS
X = jax.random.normal(jax.random.key(0), (N * S, D))
GIVEN = Conditioning(jnp.zeros(N * S, bool), S)
MOE = MoEConfig(
    router=SoftRouterConfig(slots=SLOTS),
    num_experts=E,
    top_k=1,
    hidden_ratio=1,
    shared_hidden_ratio=0,
)


def layer(scale: float = 3.0) -> MoELayer:
    built = MoELayer(MOE, D, nnx.Rngs(0))
    built.router.scale[...] = jnp.full(1, scale)
    return built


def of_expert(layer: MoELayer, expert: int, x: np.ndarray) -> np.ndarray:
    """One expert's SwiGLU on one row."""
    own = layer.experts.bank().expert(expert, jnp.float32)
    gate, up = np.split(x @ np.asarray(own.w_in, np.float64), 2)
    return gate / (1 + np.exp(-gate)) * up @ np.asarray(own.w_out, np.float64)


def shares(layer: MoELayer, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What goes into slots and what comes back, [S, P] each, entry by entry."""
    logits, scale = np.zeros((S, P)), float(layer.router.scale[0])
    for s in range(S):
        for p in range(P):
            vector = np.asarray(layer.router.vectors[p], np.float64)
            length = np.linalg.norm(image[s]) * np.linalg.norm(vector)
            logits[s, p] = scale * np.dot(image[s], vector) / length
    into, back = np.zeros((S, P)), np.zeros((S, P))
    for s in range(S):
        for p in range(P):
            into[s, p] = np.exp(logits[s, p]) / sum(np.exp(logits[i, p]) for i in range(S))
            back[s, p] = np.exp(logits[s, p]) / sum(np.exp(logits[s, j]) for j in range(P))
    return into, back


def test_in_loops():
    built = layer()
    y_TxD, routing = built(X, GIVEN)
    images, scores = np.asarray(X, np.float64).reshape(N, S, D), []
    for n, image in enumerate(images):
        into, back = shares(built, image)
        out = [of_expert(built, p // SLOTS, into[:, p] @ image) for p in range(P)]
        for s in range(S):
            expected = sum(back[s, p] * out[p] for p in range(P))
            np.testing.assert_allclose(y_TxD[n * S + s], expected, atol=1e-5)
            scores.append([back[s, e * SLOTS : (e + 1) * SLOTS].sum() for e in range(E)])
    np.testing.assert_allclose(routing.scores, scores, rtol=1e-5)
    np.testing.assert_array_equal(routing.expert, np.argmax(scores, axis=1))
    np.testing.assert_allclose(routing.weight, np.max(scores, axis=1), rtol=1e-5)
    np.testing.assert_allclose(routing.scores.sum(axis=1), 1, rtol=1e-6)
    assert routing.losses == routing.next_state == {}
    assert routing.mixes is None


def test_without_a_preference_every_slot_has_the_mean_token():
    """And every token the mean of the experts of that."""
    built = layer(scale=0.0)
    y_TxD, routing = built(X, GIVEN)
    for n in range(N):
        mean = np.asarray(X, np.float64)[n * S : (n + 1) * S].mean(axis=0)
        expected = sum(of_expert(built, e, mean) for e in range(E)) / E
        np.testing.assert_allclose(y_TxD[n * S : (n + 1) * S], [expected] * S, atol=1e-5)
    np.testing.assert_allclose(routing.metrics["slot_entropy"], 1, rtol=1e-5)


def test_an_infinite_scale_is_a_choice():
    """Each slot has its nearest token, and each token what its nearest slot gives."""
    built = layer(scale=1e6)
    y_TxD, routing = built(X, GIVEN)
    images, vectors = np.asarray(X).reshape(N, S, D), np.asarray(built.router.vectors[...])
    for n, image in enumerate(images):
        cosines = image @ vectors.T / np.linalg.norm(image, axis=1)[:, None]
        cosines /= np.linalg.norm(vectors, axis=1)
        for s in range(S):
            slot = cosines[s].argmax()
            expected = of_expert(built, slot // SLOTS, image[cosines[:, slot].argmax()])
            np.testing.assert_allclose(y_TxD[n * S + s], expected, atol=1e-4)
    assert routing.metrics["slot_entropy"] < 0.01


def test_images_are_apart_and_tokens_have_no_order():
    built = layer()
    y_TxD, _ = built(X, GIVEN)
    changed, _ = built(X.at[S : 2 * S].multiply(-2.0), GIVEN)
    np.testing.assert_array_equal(changed[:S], y_TxD[:S])
    np.testing.assert_array_equal(changed[2 * S :], y_TxD[2 * S :])
    assert jnp.abs(changed[S : 2 * S] - y_TxD[S : 2 * S]).max() > 1e-3
    order = np.random.default_rng(0).permutation(S)
    shuffled, _ = built(X.reshape(N, S, D)[:, order].reshape(N * S, D), GIVEN)
    expected = y_TxD.reshape(N, S, D)[:, order].reshape(N * S, D)
    np.testing.assert_allclose(shuffled, expected, atol=1e-5)
    # Longer tokens are no nearer.
    longer = built.router(3.0 * X, GIVEN)
    np.testing.assert_allclose(longer.scores, built.router(X, GIVEN).scores, rtol=1e-4)


def test_gradients_reach_all():
    gradient = nnx.grad(lambda built: jnp.sum(built(X, GIVEN)[0] ** 2))(layer())
    for path, value in nnx.to_flat_state(gradient):
        assert jnp.abs(value[...]).max() > 0, path


def test_statistics_and_price():
    """Experts compute the slots of an image, however many tokens it has."""
    built = layer()
    _, routing = built(X, GIVEN)
    stacked = jax.tree.map(lambda a: a[None], routing)
    statistics = layer_statistics([stacked], [MOE])
    np.testing.assert_allclose(statistics["capacity"][0], [P / S])
    # No token is of one expert alone.
    load = np.asarray(routing.scores).mean(axis=0)
    np.testing.assert_allclose(statistics["load"][0], [load], rtol=1e-6)
    np.testing.assert_allclose(statistics["busiest"][0], [load.max()], rtol=1e-6)
    assert parameters_of(built.router) == MOE.router.parameters(D, MOE)

    model = ModelConfig(width=64, depth=1, heads=1, moe=MOE)
    larger = dataclasses.replace(model, image_size=64)
    assert larger.num_tokens == 4 * model.num_tokens
    assert image_flops(larger).experts == image_flops(model).experts == P * 3 * 2 * 64 * 64
    assert image_flops(larger).router == 4 * image_flops(model).router


def test_what_has_no_meaning_is_refused():
    with pytest.raises(ValueError, match=r"top_k is 2 with router 'soft'.*allowed: 1"):
        dataclasses.replace(MOE, top_k=2)
    for wrong in ({"cheap_experts": ("zero",)}, {"choice": "rank_2"}):
        with pytest.raises(ValueError, match="router 'soft'"):
            dataclasses.replace(MOE, **wrong)
    assert tiny(SOFT_MOE).model.mixtures[0].rows(16) == 1
