"""Expert Race in training and when sampling, its losses and its layers' guesses, against loops."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_moe.config import DDPMConfig, ExpertRaceRouterConfig, MoEConfig
from dit_moe.diffusion.integrate import build_objective
from dit_moe.models.parameters import functional, init_parameters
from dit_moe.moe import losses
from dit_moe.moe.routers import build_router
from dit_moe.moe.routers.race import ExpertRaceRouter
from dit_moe.moe.routing import Conditioning
from dit_moe.nn.embeddings import patchify
from tests.moe.test_expert_choice import assert_assignments, assignments
from tests.tiny import RACE, tiny

T, D, E, K = 24, 16, 6, 2
X = jax.random.normal(jax.random.key(0), (T, D))
TRAIN = Conditioning(jnp.zeros(T, bool), tokens_per_image=T // 2, train=True)
SAMPLE = dataclasses.replace(TRAIN, train=False)


def build(**settings) -> ExpertRaceRouter:
    config = MoEConfig(router=ExpertRaceRouterConfig(**settings), num_experts=E, top_k=K)
    router = build_router(config, D, nnx.Rngs(0))
    assert isinstance(router, ExpertRaceRouter)
    router.kernel[...] = jax.random.normal(jax.random.key(1), (D, E))
    router.threshold[...] = jnp.full(1, 0.25)
    return router


def gelu(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def numpy_logits(router: ExpertRaceRouter) -> np.ndarray:
    x, first = np.asarray(X, np.float64), router.dense_in
    hidden = x @ np.asarray(first.kernel[...]) + np.asarray(first.bias[...])
    return np.vectorize(gelu)(hidden) @ np.asarray(router.kernel[...])


def numpy_scores(logits: np.ndarray, gate: str) -> np.ndarray:
    exp = np.exp(logits)
    softmax = exp / exp.sum(axis=1, keepdims=True)
    return {"identity": logits, "sigmoid": 1 / (1 + 1 / exp), "softmax": softmax}[gate]


def numpy_similarity(logits: np.ndarray, chosen: set[tuple[int, int]]) -> float:
    """Pair by pair: how alike two experts' probabilities are, weighed by the tokens they share."""
    p = numpy_scores(logits, "softmax")
    shared = np.zeros((E, E))
    for i in range(E):
        for j in range(E):
            shared[i, j] = sum((t, i) in chosen and (t, j) in chosen for t in range(T))
    own = sum(shared[i, i] for i in range(E))
    others = shared.sum() - own
    total = 0.0
    for i in range(E):
        for j in range(E):
            if i == j:
                weight = E * shared[i, i] / own
            else:
                weight = (E**2 - E) * shared[i, j] / others if others else 0.0
            total += weight * sum(p[t, i] * p[t, j] for t in range(T)) / T
    return total


@pytest.mark.parametrize("gate", ["identity", "sigmoid", "softmax"])
def test_training_takes_the_best_pairs_of_the_batch(gate):
    router = build(gate=gate, similarity_coef=0.5, threshold_decay=0.75)
    routing = router(X, TRAIN)
    logits = numpy_logits(router)
    scores = numpy_scores(logits, gate)
    pairs = sorted(np.ndindex(T, E), key=lambda pair: -scores[pair])[: T * K]
    assert_assignments(assignments(routing, E), {pair: scores[pair] for pair in pairs})
    np.testing.assert_allclose(routing.scores, scores, atol=1e-5)
    assert len({t for t, _ in pairs}) < T or len(set(np.bincount([t for t, _ in pairs]))) > 1
    expected = 0.5 * numpy_similarity(logits, set(pairs))
    np.testing.assert_allclose(routing.losses["similarity"], expected, rtol=1e-5)
    lowest = scores[pairs[-1]]
    np.testing.assert_allclose(
        routing.next_state["threshold"], [0.75 * 0.25 + 0.25 * lowest], rtol=1e-5
    )
    together = sorted(
        (
            sum((t, i) in pairs and (t, j) in pairs for t in range(T))
            for i in range(E)
            for j in range(i)
        ),
        reverse=True,
    )
    used = next(n for n in range(1, 16) if sum(together[:n]) >= 0.95 * sum(together))
    np.testing.assert_allclose(routing.metrics["pair_usage"], used / 15, rtol=1e-6)
    passing = (scores >= 0.25).sum() / T
    np.testing.assert_allclose(routing.metrics["predicted_capacity"], passing, rtol=1e-6)


def test_sampling_takes_what_reaches_the_threshold():
    router = build()
    routing = router(X, SAMPLE)
    scores = numpy_logits(router)
    expected = {pair: scores[pair] for pair in np.ndindex(T, E) if scores[pair] >= 0.25}
    assert 0 < len(expected) < T * E
    assert_assignments(assignments(routing, E), expected)
    assert routing.losses == routing.next_state == {}
    assert routing.hidden is None
    alone = router(X[: T // 2], dataclasses.replace(SAMPLE, is_null=SAMPLE.is_null[: T // 2]))
    half = {pair: weight for pair, weight in expected.items() if pair[0] < T // 2}
    assert_assignments(assignments(alone, E), half)


def test_the_threshold_converges_to_the_last_winner():
    """So that sampling the batch it learnt from takes as many pairs as training did."""
    router = build()
    step = nnx.jit(lambda router: router(X, TRAIN).next_state["threshold"])
    for _ in range(300):
        router.threshold[...] = step(router)
    lowest = np.sort(numpy_logits(router).ravel())[-T * K]
    np.testing.assert_allclose(router.threshold[...], [lowest], rtol=1e-4)
    assert (router(X, SAMPLE).expert < E).sum() == pytest.approx(T * K, abs=1)


def test_similarity_of_known_choices():
    even_TxE = jnp.full((T, E), 1 / E)
    chosen_TxE = jnp.zeros((T, E)).at[:, :2].set(1.0)
    assert losses.router_similarity_loss(even_TxE, chosen_TxE) == pytest.approx(1, rel=1e-5)
    # Of experts without a token in common, the diagonal alone is left: 0 of 0 is 0.
    apart_TxE = jax.nn.one_hot(jnp.arange(T) % E, E)
    value, gradient = jax.value_and_grad(losses.router_similarity_loss)(even_TxE, apart_TxE)
    assert value == pytest.approx(E * (1 / E) ** 2, rel=1e-5)
    assert jnp.isfinite(gradient).all()
    # Certain and even choices are least alike: each expert has its own tokens.
    assert losses.router_similarity_loss(apart_TxE, apart_TxE) == pytest.approx(1, rel=1e-5)
    collapsed_TxE = jax.nn.one_hot(jnp.zeros(T, int), E)
    collapsed = losses.router_similarity_loss(collapsed_TxE, collapsed_TxE)
    assert collapsed == pytest.approx(E, rel=1e-5)


@pytest.fixture(scope="module")
def network():
    config = tiny(RACE)
    parameters = jax.jit(lambda key: init_parameters(config.model, key))(jax.random.key(0))
    noise = np.random.default_rng(0)
    return config, {
        path: value + 0.1 * noise.normal(size=value.shape).astype(np.float32)
        for path, value in parameters.items()
    }


KEY_N, Y_N = jax.random.split(jax.random.key(3), 4), jnp.arange(4)
IMAGES = jax.random.normal(jax.random.key(4), (4, 8, 8, 1))


@pytest.mark.parametrize("objective", ["rectified_flow", "ddpm"])
def test_what_layers_guess_is_judged_by_the_target(network, objective):
    """The head of each layer on the router's hidden layer, entry by entry; and the gradient
    reaches the hidden layer and the blocks before."""
    config, parameters = network
    if objective == "ddpm":
        config = dataclasses.replace(config, objective=DDPMConfig())

    def loss(parameters):
        network = functools.partial(functional(config.model)(parameters), train=True)
        measure = build_objective(config.objective).loss
        value, (metrics, prediction) = measure(network, KEY_N, IMAGES, Y_N)
        return metrics["layer_guess"], (value, metrics, prediction)

    (value, beside), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(parameters)
    total, metrics, prediction = beside
    noise_key_N = jax.vmap(lambda key: jax.random.split(key)[1])(KEY_N)
    noise = jax.vmap(lambda key: jax.random.normal(key, (8, 8, 1)))(noise_key_N)
    target = np.asarray(noise if objective == "ddpm" else noise - IMAGES)
    guesses = np.asarray(prediction.guesses.value)
    assert guesses.shape == (2, 4, 8, 8, 1)
    expected = 0.0
    for guess in guesses:
        expected += 0.5 * np.mean([(a - b) ** 2 for a, b in zip(guess, target, strict=True)])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    parts = [metrics[name] for name in ("mse", "similarity", "layer_guess")]
    np.testing.assert_allclose(total, sum(parts), rtol=1e-6)
    assert all(record.guess is record.hidden is None for record in prediction.routing)

    block = "trunk.segments.0.blocks.0."
    for name in ("guess.kernel", "feed_forward.router.dense_in.kernel", "attention.qkv.kernel"):
        assert jnp.abs(gradient[block + name]).max() > 0, name
    assert jnp.abs(gradient["patch_out.kernel"]).max() == 0
    assert jnp.abs(gradient[block + "feed_forward.router.threshold"]).max() == 0


def test_a_guess_is_the_heads_of_the_tokens(network):
    """A head that knows nothing but a bias says the same of every patch."""
    config, parameters = network
    said = np.arange(2 * 4, dtype=np.float32).reshape(2, 4)  # layers and pixels of a patch
    path = "trunk.segments.0.blocks.0.guess."
    parameters = parameters | {
        path + "kernel": jnp.zeros_like(parameters[path + "kernel"]),
        path + "bias": jnp.asarray(said),
    }
    model = functional(config.model)(parameters)
    guesses = model(IMAGES, jnp.full(4, 0.5), Y_N, train=True).guesses
    assert guesses is not None
    assert guesses.coefs == (0.5, 0.5)
    for layer in range(2):
        tokens = patchify(guesses.value[layer], 2)
        np.testing.assert_allclose(tokens, np.broadcast_to(said[layer], tokens.shape))
    assert model(IMAGES, jnp.full(4, 0.5), Y_N).guesses is None


def test_a_guess_that_is_promised_needs_a_hidden_layer(network, monkeypatch):
    config, parameters = network
    route = ExpertRaceRouter.__call__

    def forgetful(router, *given):
        return dataclasses.replace(route(router, *given), hidden=None)

    monkeypatch.setattr(ExpertRaceRouter, "__call__", forgetful)
    run = functools.partial(functional(config.model)(parameters), train=True)
    with pytest.raises(ValueError, match="tell of a guess, but it has no hidden"):
        jax.eval_shape(run, IMAGES, jnp.full(4, 0.5), Y_N)
