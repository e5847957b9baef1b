"""AdaMoE's router: a variable number of true experts, the rest of a token's choices null."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_moe.config import ConfigError, MoEConfig, NullTopKRouterConfig
from dit_moe.config.files import override
from dit_moe.moe import losses
from dit_moe.moe.layer import MoELayer
from dit_moe.moe.routers.cheap_choice import NullTopKRouter
from dit_moe.moe.routing import Conditioning
from dit_moe.runs.state import init_state
from dit_moe.training.step import build_step
from tests.tiny import ADAMOE, tiny
from tests.training.test_training import batch, one_device

T, D = 24, 16


def given(tokens: int = T, train: bool = True) -> Conditioning:
    return Conditioning(jnp.zeros(tokens, bool), tokens, train)


def moe_of(true: int, null: int, top_k: int, **settings: object) -> MoEConfig:
    router = NullTopKRouterConfig(**settings)  # pyright: ignore[reportArgumentType]
    return MoEConfig(
        router=router,
        num_experts=true,
        top_k=top_k,
        hidden_ratio=1,
        shared_hidden_ratio=0,
        cheap_experts=("zero",) * null,
    )


def router_of(moe: MoEConfig, width: int = D) -> NullTopKRouter:
    assert isinstance(moe.router, NullTopKRouterConfig)
    return NullTopKRouter(moe, moe.router, width, nnx.Rngs(0))


@pytest.mark.parametrize("balance", ["mean_null", "each"])
@pytest.mark.parametrize("sum_over", ["true", "chosen"])
def test_in_loops(balance: str, sum_over: str):
    """Token after token, in numpy."""
    n, m, k = 4, 5, 3
    moe = moe_of(n, m, k, balance=balance, sum_over=sum_over, balance_coef=0.5)
    layer = MoELayer(moe, D, nnx.Rngs(0))
    x_TxD = 3 * jax.random.normal(jax.random.key(1), (T, D))
    y_TxD, routing = layer(x_TxD, given())
    bank = layer.experts.bank()
    x, y = np.asarray(x_TxD, np.float64), np.zeros((T, D))
    kernel = np.asarray(layer.router.kernel[...], np.float64)
    chose, mean = np.zeros(n + m), np.zeros(n + m)
    for t in range(T):
        p = np.exp(x[t] @ kernel)
        p /= p.sum()
        chosen = np.argsort(-p)[:k]
        total = sum(p[e] for e in chosen if e < n or sum_over == "chosen")
        for e in chosen:
            chose[e] += 1
            if e < n:
                own = bank.expert(int(e), jnp.float32)
                gate, up = np.split(x[t] @ np.asarray(own.w_in), 2)
                y[t] += p[e] / total * ((gate / (1 + np.exp(-gate)) * up) @ np.asarray(own.w_out))
        mean += p / T
    if balance == "mean_null":
        chose[n:] = chose[n:].mean()
    np.testing.assert_allclose(y_TxD, y, rtol=1e-4, atol=1e-4)
    expected = 0.5 * (n + m) * np.sum(chose / T * mean)
    np.testing.assert_allclose(routing.losses["balance"], expected, rtol=1e-5)


@pytest.mark.parametrize(("true", "null", "top_k"), [(4, 5, 4), (4, 7, 4), (4, 9, 4), (8, 8, 3)])
def test_even_load(true: int, null: int, top_k: int):
    """Of logits that are independent and alike, k n / (n + m) true experts a token, and a
    hypergeometric share of tokens without any."""
    moe, tokens = moe_of(true, null, top_k), 20_000
    router = router_of(moe, true + null)
    router.kernel[...] = jnp.eye(true + null)
    x_TxD = jax.random.normal(jax.random.key(2), (tokens, true + null))
    routing = router(x_TxD, given(tokens))
    true_T = (routing.expert.reshape(tokens, top_k) < true).sum(axis=1)
    np.testing.assert_allclose(true_T.mean(), moe.computed_experts, atol=0.03)
    assert moe.computed_experts == top_k * true / (true + null)
    only_null = math.comb(null, top_k) / math.comb(true + null, top_k)
    np.testing.assert_allclose(routing.metrics["only_null"], only_null, atol=0.01)
    np.testing.assert_allclose(routing.losses["balance"], 0.02 * top_k, rtol=0.01)
    # Weights of true experts sum to 1, or are none.
    weight_TxK = jnp.where(routing.expert < true, routing.weight, 0).reshape(tokens, top_k)
    np.testing.assert_allclose(weight_TxK.sum(axis=1), true_T > 0, atol=1e-5)
    assert (routing.weight > 0).all()  # a null expert was chosen all the same


def test_without_null_experts_it_is_top_k_with_weights_that_sum_to_one():
    plain = router_of(moe_of(4, 0, 2))
    x_TxD = jax.random.normal(jax.random.key(1), (T, D))
    routing = plain(x_TxD, given())
    best_TxK = jax.lax.top_k(routing.scores, 2)[1]
    np.testing.assert_array_equal(routing.expert.reshape(T, 2), best_TxK)
    np.testing.assert_allclose(routing.weight.reshape(T, 2).sum(axis=1), 1, rtol=1e-6)
    expected = 0.02 * 2 * losses.balance_loss(routing.scores, best_TxK)
    np.testing.assert_allclose(routing.losses["balance"], expected, rtol=1e-6)


@pytest.mark.parametrize("sum_over", ["true", "chosen"])
def test_a_token_of_null_experts_alone_is_nothing(sum_over: str):
    layer = MoELayer(moe_of(2, 6, 1, sum_over=sum_over, balance_coef=0), D, nnx.Rngs(0))
    x_TxD = jax.random.normal(jax.random.key(1), (T, D))

    def run(x_TxD: jax.Array) -> jax.Array:
        return layer(x_TxD, given())[0]

    null_T = layer(x_TxD, given())[1].expert >= 2
    assert 0 < null_T.sum() < T
    np.testing.assert_array_equal(np.abs(run(x_TxD)).max(axis=1) == 0, null_T)
    of_x_TxD = jax.grad(lambda x: jnp.sum(run(x) ** 2 + run(x)))(x_TxD)
    np.testing.assert_array_equal(np.abs(of_x_TxD).max(axis=1) == 0, null_T)
    # Where none has a true expert, nothing reaches the router either.
    nulls = jnp.zeros((D, 8)).at[:, 2:].set(1.0)
    layer.router.kernel[...] = nulls
    gradient = nnx.grad(lambda layer: jnp.sum(layer(jnp.ones((T, D)), given())[0]))(layer)
    np.testing.assert_array_equal(gradient.router.kernel[...], 0)


def test_it_does_not_matter_which_null_experts_share_the_load():
    rng = np.random.default_rng(0)
    p_TxE = rng.dirichlet(np.ones(5), size=40).astype(np.float32)
    p_TxE[:, 2:] = p_TxE[:, 2:].mean(axis=1, keepdims=True)
    expert_TxK = np.stack([rng.permutation(5)[:2] for _ in range(40)])
    moved_TxK = np.where(expert_TxK == 4, 3, expert_TxK)
    # With the loss of every expert by itself, that of the likelier one weighs more.
    p_TxE[:, 3] += 0.1
    plain = [float(losses.balance_loss(p_TxE, e)) for e in (expert_TxK, moved_TxK)]
    mean = [float(losses.null_balance_loss(p_TxE, e, 2)) for e in (expert_TxK, moved_TxK)]
    assert mean[0] == pytest.approx(mean[1], rel=1e-6)
    assert plain[0] < plain[1]


def test_the_least_likely_are_weighed_by_what_they_are():
    """Self-contrast: of the experts that a token goes to, the true ones sum to 1."""
    moe = dataclasses.replace(moe_of(4, 5, 3), choice="least_likely")
    routing = router_of(moe)(jax.random.normal(jax.random.key(1), (T, D)), given())
    true_TxK = (routing.expert < 4).reshape(T, 3)
    weight_T = jnp.where(true_TxK, routing.weight.reshape(T, 3), 0).sum(axis=1)
    np.testing.assert_allclose(weight_T, true_TxK.any(axis=1), atol=1e-6)


def test_the_loss_is_loosened_after_so_many_updates():
    """By updates, whatever their parts; sampling does not count."""
    config = tiny(ADAMOE, batch_size=8, accumulation=2, weight_decay=0.5)
    path = "trunk.segments.0.blocks.0.feed_forward.router.updates"
    state = init_state(config.model, config.train, one_device(), config.seed)
    step = jax.jit(build_step(config.model, config.objective, config.train, config.seed))
    coefs = []
    for number in range(3):
        np.testing.assert_array_equal(state.parameters[path], [[number]] * 2)
        state, metrics = step(state, *batch(8))
        coefs.append(np.asarray(metrics["moe/balance_coef"][0])[0])
    np.testing.assert_allclose(coefs, [0.5, 0.5, 0.125], rtol=1e-6)
    np.testing.assert_array_equal(state.ema[path], [[3]] * 2)
    assert router_of(ADAMOE)(jnp.ones((T, D)), given(train=False)).next_state == {}


def test_null_experts_give_nothing():
    config = tiny(ADAMOE)
    with pytest.raises(ConfigError, match=r"cheap_experts is zero, copy .*'null_top_k'.*zero,zero"):
        override(config, ["--config.model.moe.cheap_experts=zero,copy"])
