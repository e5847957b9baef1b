"""Experts with a capacity, of which more tokens want them are dropped by lot, against loops."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_moe.config import ROUTERS, MixedTopKRouterConfig, MoEConfig, TopKRouterConfig
from dit_moe.config.files import override
from dit_moe.moe.routers import build_router
from dit_moe.moe.routers.capacity import within_capacity
from dit_moe.moe.routers.draws import key_of
from dit_moe.moe.routing import Routing
from tests.moe.test_facts import parameters_of
from tests.moe.test_load_bias import BIASED, SAMPLE, TRAIN, D, E, K, T, X, mixture
from tests.tiny import tiny


def routed(name: str, cheap: tuple[str, ...] = (), **settings: Any) -> tuple[Any, Routing]:
    """A router, and what it decides in training."""
    router = build_router(mixture(name, cheap, **settings), D, nnx.Rngs(0))
    return router, router(X, TRAIN)


@pytest.mark.parametrize("name", BIASED)
def test_in_loops(name: str):
    """First choices before second ones, by lot among equals, until an expert is full."""
    settings = {"bias": "sign", "bias_rate": 0.01}
    _, wanted = routed(name, **settings, capacity_factor=10.0)
    router, routing = routed(name, **settings, capacity_factor=1.0)
    capacity = math.ceil(T * K / E)
    lot_T = np.asarray(jax.random.uniform(key_of(router.draw[...], purpose=1), (T,)))
    room, kept = np.full(E, capacity), np.zeros((T, K), bool)
    expert_TxK = np.asarray(wanted.expert).reshape(T, K)
    for k in range(K):
        for t in np.argsort(lot_T):
            e = expert_TxK[t, k]
            kept[t, k] = room[e] > 0
            room[e] -= kept[t, k]
    np.testing.assert_array_equal(routing.expert.reshape(T, K), np.where(kept, expert_TxK, E))
    weight_TxK = np.where(kept, wanted.weight.reshape(T, K), 0)
    np.testing.assert_array_equal(routing.weight.reshape(T, K), weight_TxK)
    dropped = 1 - kept.mean()
    assert dropped > 0.05
    np.testing.assert_allclose(routing.metrics["dropped"], dropped, rtol=1e-5)
    # Losses and biases are of what was wanted.
    jax.tree.map(np.testing.assert_array_equal, routing.losses, wanted.losses)
    np.testing.assert_array_equal(routing.next_state["bias"], wanted.next_state["bias"])
    assert routing.next_state["draw"] == router.draw[...] + 1


@pytest.mark.parametrize("name", BIASED)
def test_room_for_all_is_no_capacity(name: str):
    """To the bit, but for the counter; and sampling drops nothing."""
    plain, without = routed(name, bias="absent")
    router, _ = routed(name, bias="absent", capacity_factor=float(E))
    nnx.update(router, nnx.state(plain))
    routing = router(X, TRAIN)
    assert routing.metrics["dropped"] == 0
    assert ("draw" in without.next_state) == (name == "noisy_top_k")
    assert {"draw"} <= routing.next_state.keys()
    for field in ("token", "expert", "weight", "scores", "losses"):
        actual, expected = (getattr(r, field) for r in (routing, without))
        jax.tree.map(np.testing.assert_array_equal, actual, expected)
    sampled, expected = (r(X, SAMPLE) for r in (router, plain))
    jax.tree.map(np.testing.assert_array_equal, sampled, expected)
    moe = mixture(name, bias="absent", capacity_factor=1.0)
    assert parameters_of(router) == moe.router.parameters(D, moe)


@pytest.mark.parametrize(
    ("expert_TxK", "capacity", "kept"),
    [
        (np.arange(96)[:, None] % 6, 16, 1.0),  # even
        (np.zeros((96, 1), int), 16, 1 / 6),  # all want the same
        (np.array([[0, 1]] * 96), 16, 1 / 6),
        (np.full((96, 1), 6), 16, 1.0),  # an expert without a capacity
        # All firsts fit, so that half of the seconds must go.
        (np.array([[0, 1]] * 48 + [[1, 0]] * 48), 72, 0.75),
    ],
)
def test_shares(expert_TxK: np.ndarray, capacity: int, kept: float):
    kept_TxK = within_capacity(jnp.asarray(expert_TxK), 6, capacity, jax.random.key(0))
    assert kept_TxK.mean() == pytest.approx(kept)
    if expert_TxK.shape[1] == 2 and kept > 0.5:
        assert kept_TxK[:, 0].all()


def test_lots_favour_no_place():
    """Each token is kept in as many draws as another, wherever in the batch it lies."""
    expert_TxK = jnp.zeros((40, 1), jnp.int32)
    keys = jax.random.split(jax.random.key(0), 4000)
    kept = jax.vmap(lambda key: within_capacity(expert_TxK, 1, 10, key))(keys)
    np.testing.assert_allclose(kept.mean(axis=0), 0.25, atol=0.03)


def test_a_capacity_follows_what_is_due():
    """MoE++ (section 3.4), of T tokens times top_k: gamma tau K T / (tau N + M)."""
    router = MixedTopKRouterConfig(tau=0.5, capacity_factor=1.1)
    cheap = ("zero", "copy", "constant", "constant")
    moe = MoEConfig(router=router, num_experts=8, top_k=2, cheap_experts=cheap)
    assert router.capacity(1000, moe) == math.ceil(1.1 * 0.5 * 2 * 1000 / (0.5 * 8 + 4))
    assert router.capacity(7, moe) == 1
    assert TopKRouterConfig().capacity(1000, moe) is None


def test_cheap_experts_have_no_capacity():
    _, routing = routed("top_k", ("zero", "copy"), capacity_factor=1.0, gate="sigmoid")
    counts = np.bincount(np.asarray(routing.expert), minlength=E + 3)
    assert counts[:E].max() <= math.ceil(K * T / (E + 2))
    _, wanted = routed("top_k", ("zero", "copy"), capacity_factor=10.0, gate="sigmoid")
    before = np.bincount(np.asarray(wanted.expert), minlength=E + 3)
    np.testing.assert_array_equal(counts[E : E + 2], before[E : E + 2])
    assert counts[E + 2] == before[:E].sum() - counts[:E].sum()


def test_a_capacity_below_the_even_load_is_refused():
    for name in BIASED:
        with pytest.raises(ValueError, match="greater than or equal to 1"):
            ROUTERS[name](capacity_factor=0.9)  # pyright: ignore[reportCallIssue]
    config = override(
        tiny(MoEConfig(num_experts=4)), ["--config.model.moe.router.capacity_factor=1.25"]
    )
    assert config.model.moe is not None
    router = dataclasses.replace(TopKRouterConfig(), capacity_factor=1.25)
    assert config.model.moe.router == router
