"""Balance by a bias without a gradient, for every router in which tokens choose, against numpy."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_moe.config import ROUTERS, BiasSettings, ModelConfig, MoEConfig, TopKRouterConfig
from dit_moe.moe.routers import build_router
from dit_moe.moe.routing import Conditioning
from dit_moe.sampling.guides import weakly_routed

T, D, E, K = 96, 16, 6, 2
# Tokens with a common part, which most of them would take to the same experts.
X = jax.random.normal(jax.random.key(0), (T, D)) + jax.random.normal(jax.random.key(1), (D,))
# Routers that see the logits before find zeros, as in a first layer.
BEFORE = {"logits": jnp.zeros((T, E))}
SAMPLE = Conditioning(jnp.zeros(T, bool), tokens_per_image=T // 2, previous=BEFORE)
TRAIN = dataclasses.replace(SAMPLE, train=True)
BIASED = [
    name
    for name in ROUTERS.names
    if ROUTERS[name].__module__.startswith("dit_moe.") and issubclass(ROUTERS[name], BiasSettings)
]


def mixture(name: str, cheap: tuple[str, ...] = (), **settings: Any) -> MoEConfig:
    router = ROUTERS[name](**settings)
    return MoEConfig(router=router, num_experts=E, top_k=K, cheap_experts=cheap)


def test_every_router_in_which_tokens_choose_has_biases():
    own = [n for n in ROUTERS.names if ROUTERS[n].__module__.startswith("dit_moe.")]
    assert [n for n in own if ROUTERS[n].chooser == "token"] == BIASED


@pytest.mark.parametrize("name", BIASED)
def test_the_bias_decides_who_computes_and_no_weight(name: str):
    """Choice by score plus bias; scores are those without."""
    moe = mixture(name, bias="sign", bias_rate=0.01)
    router = build_router(moe, D, nnx.Rngs(0))
    plain = router(X, SAMPLE)
    bias = np.linspace(-5, 5, E).astype(np.float32)
    router.bias[...] = jnp.asarray(bias)
    routing = router(X, SAMPLE)
    np.testing.assert_array_equal(routing.scores, plain.scores)
    expected = np.argsort(-(np.asarray(plain.scores) + bias), axis=1, kind="stable")[:, :K]
    np.testing.assert_array_equal(routing.expert.reshape(T, K), expected)
    assert not routing.next_state

    trained = router(X, TRAIN)
    load = np.bincount(trained.expert, minlength=E)
    moved = bias + 0.01 * np.sign(T * K / E - load)
    np.testing.assert_allclose(trained.next_state["bias"], moved, rtol=1e-6)
    gradient = nnx.grad(lambda router: router(X, TRAIN).weight[::2].sum())(router)
    np.testing.assert_array_equal(nnx.state(gradient)["bias"][...], 0)


@pytest.mark.parametrize("name", BIASED)
def test_without_biases_there_are_none(name: str):
    moe = mixture(name, bias="absent")
    router = build_router(moe, D, nnx.Rngs(0))
    assert isinstance(router, nnx.Module)
    assert "bias" not in nnx.state(router)
    assert "bias" not in router(X, TRAIN).next_state
    with_bias = mixture(name, bias="share")
    assert with_bias.router.parameters(D, with_bias) == moe.router.parameters(D, moe) + E
    sizes = [
        leaf.size for leaf in jax.tree.leaves(nnx.state(build_router(with_bias, D, nnx.Rngs(0))))
    ]
    assert sum(sizes) == with_bias.router.parameters(D, with_bias)


@pytest.mark.parametrize("mean", [None, 0.5])
def test_shares_move_the_biases_of_routed_experts_alone(mean: float | None):
    moe = mixture("top_k", ("zero", "copy"), bias="share", bias_rate=0.3, mean_experts=mean)
    router = build_router(moe, D, nnx.Rngs(0))
    routing = router(X, TRAIN)
    due = (K * E / (E + 2) if mean is None else mean) / K / E
    expected = np.zeros(E + 2)
    for e in range(E):
        expected[e] = 0.3 * (due - np.sum(np.asarray(routing.expert) == e) / (T * K))
    np.testing.assert_allclose(routing.next_state["bias"], expected, atol=1e-6)
    assert moe.computed_experts == pytest.approx(due * K * E)


def test_steps_bring_the_mean_number_of_routed_experts_to_the_aim():
    settings = {"bias": "share", "bias_rate": 0.05, "mean_experts": 0.75, "balance_coef": 0.0}
    router = build_router(mixture("top_k", ("zero", "zero"), **settings), D, nnx.Rngs(0))

    def routed() -> float:
        return float((router(X, SAMPLE).expert < E).sum()) / T

    before = routed()
    step = nnx.jit(lambda router: router(X, TRAIN).next_state["bias"])
    for _ in range(300):
        router.bias[...] = step(router)
    assert before > 1.0
    assert routed() == pytest.approx(0.75, abs=0.1)


@pytest.mark.parametrize(
    ("cheap", "settings", "message"),
    [
        (("zero",), {"mean_experts": 1.0}, "with router.bias 'absent'; allowed: none, or"),
        ((), {"bias": "share", "mean_experts": 1.0}, "without cheap experts; allowed: none"),
        (("zero",), {"bias": "share", "mean_experts": 3.0}, r"up to top_k \(2\)"),
    ],
)
def test_a_mean_that_cannot_be_aimed_at_is_refused(cheap, settings, message):
    with pytest.raises(ValueError, match=message):
        MoEConfig(router=TopKRouterConfig(**settings), num_experts=E, top_k=K, cheap_experts=cheap)


def test_the_weak_network_of_self_contrast_may_have_fewer_experts_than_were_aimed_at():
    moe = mixture("top_k", ("zero",), bias="share", mean_experts=1.5)
    model = ModelConfig(width=8, depth=1, heads=1, moe=moe)
    weak = weakly_routed(model, "top_1").moe
    assert weak is not None
    assert weak.top_k == 1
