"""The gate as a choice of its own, and the router z-loss, against loops in numpy."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_moe.config import ROUTERS, MoEConfig, TopKRouterConfig
from dit_moe.config.routers import GatedSettings, LogitSettings
from dit_moe.moe import losses
from dit_moe.moe.routers import build_router
from dit_moe.moe.routing import Conditioning, Routing
from tests.moe.test_cosine_router import numpy_cosines
from tests.moe.test_expert_choice import assignments
from tests.moe.test_expert_race import numpy_logits

T, D, E, K = 24, 16, 6, 2
X = jax.random.normal(jax.random.key(0), (T, D))
# Routers that see the logits before find zeros, as in a first layer.
BEFORE = {"logits": jnp.zeros((T, E))}
TRAIN = Conditioning(jnp.zeros(T, bool), tokens_per_image=T // 2, train=True, previous=BEFORE)
# Without those that other tests register.
OWN = {n: ROUTERS[n] for n in ROUTERS.names if ROUTERS[n].__module__.startswith("dit_moe.")}
GATED = [name for name, settings in OWN.items() if issubclass(settings, GatedSettings)]
WITH_LOGITS = [name for name, settings in OWN.items() if issubclass(settings, LogitSettings)]


def route(name: str, **settings: Any) -> tuple[Routing, np.ndarray]:
    """What a router of this name decides in training, and its logits without noise."""
    moe = MoEConfig(router=ROUTERS[name](**settings), num_experts=E, top_k=K)
    router = build_router(moe, D, nnx.Rngs(0))
    if name == "cosine":
        return router(X, TRAIN), numpy_cosines(router, 2.0)
    # Wide enough that gates differ.
    kernel = router.kernels[0] if name == "mixed_top_k" else router.kernel
    kernel[...] = jax.random.normal(jax.random.key(1), (D, E))
    if name == "expert_race":
        return router(X, TRAIN), numpy_logits(router)
    logits = np.asarray(X, np.float64) @ np.asarray(kernel[...], np.float64)
    return router(X, TRAIN), logits


def numpy_gate(gate: str, logits: np.ndarray) -> np.ndarray:
    scores = np.zeros_like(logits)
    for t, e in np.ndindex(logits.shape):
        value = logits[t, e]
        total = sum(math.exp(other) for other in logits[t])
        values = {
            "softmax": math.exp(value) / total,
            "sigmoid": 1 / (1 + math.exp(-value)),
            "identity": value,
        }
        scores[t, e] = values[gate]
    return scores


@pytest.mark.parametrize("gate", ["softmax", "sigmoid", "identity"])
@pytest.mark.parametrize("name", GATED)
def test_weights_are_the_gates_values(name: str, gate: str):
    routing, logits = route(name, gate=gate)
    scores = numpy_gate(gate, logits)
    np.testing.assert_allclose(routing.scores, scores, rtol=1e-4, atol=1e-6)
    found = assignments(routing, E)
    assert len(found) == T * K
    for (token, expert), weight in found.items():
        assert weight == pytest.approx(scores[token, expert], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("gate", ["sigmoid", "identity"])
def test_a_token_goes_where_softmax_sends_it(gate: str):
    """All gates rise with the logit; the balance loss has probabilities whatever the gate."""
    expected, _ = route("top_k")
    routing, _ = route("top_k", gate=gate)
    np.testing.assert_array_equal(routing.expert, expected.expert)
    np.testing.assert_array_equal(routing.losses["balance"], expected.losses["balance"])
    assert (routing.weight < 0).any() == (gate == "identity")


def test_the_sigmoid_of_an_expert_knows_no_other():
    for gate, same in (("sigmoid", True), ("softmax", False)):
        moe = MoEConfig(router=TopKRouterConfig(gate=gate), num_experts=E, top_k=K)
        router = build_router(moe, D, nnx.Rngs(0))
        before = router(X, TRAIN).scores
        router.kernel[...] = router.kernel[...].at[:, 0].add(1.0)
        after = router(X, TRAIN).scores
        assert (before[:, 1:] == after[:, 1:]).all() == same


@pytest.mark.parametrize("name", WITH_LOGITS)
def test_every_router_with_logits_has_a_z_loss(name: str):
    plain, _ = route(name)
    routing, _ = route(name, z_coef=0.5)
    assert "router_z" not in plain.losses
    assert set(routing.losses) == {*plain.losses, "router_z"}
    without = dataclasses.replace(routing, losses=plain.losses)
    jax.tree.map(np.testing.assert_array_equal, without, plain)


@pytest.mark.parametrize(
    "name",
    ["top_k", "sigmoid_top_k", "cosine", "expert_choice", "batch_pool", "expert_race"],
)
def test_z_loss_of_logits(name: str):
    routing, logits = route(name, z_coef=0.5)
    terms = [math.log(sum(math.exp(value) for value in row)) ** 2 for row in logits]
    assert routing.losses["router_z"] == pytest.approx(0.5 * sum(terms) / T, rel=1e-5)


def test_z_loss_of_equal_logits():
    """log(E)^2 at zero logits, 0 where they are -log E: the gradient pulls the sum to 1."""
    zeros = jnp.zeros((T, E))
    assert losses.z_loss(zeros) == pytest.approx(math.log(E) ** 2, rel=1e-6)
    assert losses.z_loss(zeros - math.log(E)) == pytest.approx(0, abs=1e-10)
