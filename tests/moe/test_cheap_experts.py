"""Cheap experts: what they give, that no row of theirs is dispatched, what they are counted as."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_moe.config import CHEAP_EXPERTS, ConfigError, ModelConfig, MoEConfig
from dit_moe.config.files import override
from dit_moe.moe.assignments import ExpertRanges
from dit_moe.moe.experts.cheap import CheapExperts
from dit_moe.moe.layer import MoELayer
from dit_moe.moe.routing import Conditioning, Routing
from dit_moe.moe.statistics import routing_statistics
from dit_moe.plan.flops import image_flops
from tests.moe.test_facts import flops_of, parameters_of
from tests.tiny import tiny

T, D, E = 24, 16, 4
MOE = MoEConfig(
    num_experts=E,
    top_k=3,
    hidden_ratio=1,
    shared_hidden_ratio=0,
    cheap_experts=("zero", "copy", "constant", "constant"),
)


def layer_and_tokens(moe: MoEConfig) -> tuple[MoELayer, jax.Array, Conditioning]:
    x_TxD = jax.random.normal(jax.random.key(1), (T, D))
    return MoELayer(moe, D, nnx.Rngs(0)), x_TxD, Conditioning(jnp.zeros(T, bool), T)


def test_the_layer_is_the_sum_over_all_kinds():
    """One assignment after another, in numpy."""
    layer, x_TxD, conditioning = layer_and_tokens(MOE)
    y_TxD, routing = layer(x_TxD, conditioning)
    assert set(np.unique(routing.expert)) == set(range(E + 4))  # all kinds are tried
    bank, cheap = layer.experts.bank(), layer.cheap
    assert cheap is not None
    x, expected = np.asarray(x_TxD, np.float64), np.zeros((T, D))
    for token, expert, weight in zip(routing.token, routing.expert, routing.weight, strict=True):
        v = x[token]
        if expert < E:
            own = bank.expert(int(expert), jnp.float32)
            gate, up = np.split(v @ np.asarray(own.w_in), 2)
            out = (gate / (1 + np.exp(-gate)) * up) @ np.asarray(own.w_out)
        elif expert == E:
            out = np.zeros(D)
        elif expert == E + 1:
            out = v
        else:
            constant = int(expert) - E - 2
            logits = v @ np.asarray(cheap.kernel[constant], np.float64)
            a = np.exp(logits) / np.exp(logits).sum()
            out = a[0] * v + a[1] * np.asarray(cheap.vector[constant])
        expected[token] += float(weight) * out
    np.testing.assert_allclose(y_TxD, expected, atol=2e-5)


def test_zero_experts_change_nothing_but_the_choice():
    """With a copy or constant nowhere, tokens that choose zeros alone come out as 0."""
    moe = dataclasses.replace(MOE, top_k=1, cheap_experts=("zero",) * 12)
    layer, x_TxD, conditioning = layer_and_tokens(moe)
    y_TxD, routing = layer(x_TxD, conditioning)
    null_T = np.asarray(routing.expert >= E)
    assert 0 < null_T.sum() < T
    np.testing.assert_array_equal(np.abs(y_TxD).max(axis=1) == 0, null_T)
    found = routing_statistics(jax.tree.map(lambda a: a[None], routing), ExpertRanges.of(moe))
    np.testing.assert_allclose(found["capacity"], [1 - null_T.mean()], atol=1e-6)
    np.testing.assert_allclose(found["load"].sum(), 1, atol=1e-6)
    assert found["load"].shape == (1, E + 12)


def test_gradients_reach_constants_and_router():
    layer, x_TxD, conditioning = layer_and_tokens(MOE)
    gradient = nnx.grad(lambda layer: jnp.sum(layer(x_TxD, conditioning)[0] ** 2))(layer)
    for parameter in jax.tree.leaves(gradient):
        assert jnp.abs(parameter).max() > 0


def test_the_busiest_is_not_the_first():
    moe = dataclasses.replace(MOE, top_k=1)
    layer, x_TxD, conditioning = layer_and_tokens(moe)
    _, routing = layer(x_TxD, conditioning)
    routing = dataclasses.replace(routing, expert=jnp.full_like(routing.expert, 3))
    found = routing_statistics(jax.tree.map(lambda a: a[None], routing), ExpertRanges.of(moe))
    np.testing.assert_array_equal(found["busiest"], [1.0])
    np.testing.assert_array_equal(found["load"][0], np.eye(8)[3])


def test_flops_are_those_of_the_experts_that_compute():
    """k n / (n + m) of the experts compute a token when the load is even."""
    dense = MoEConfig(num_experts=4, top_k=2, shared_hidden_ratio=0)
    half = dataclasses.replace(dense, cheap_experts=("zero",) * 4)
    size = {"width": 64, "depth": 2, "heads": 2}
    experts = [image_flops(ModelConfig(**size, moe=moe)).experts for moe in (dense, half)]
    assert experts[1] == experts[0] / 2


def test_flops_of_constants():
    """Against XLA: a token is multiplied by three vectors."""
    tokens, width, constants = 256, 512, 64
    cheap = CheapExperts(ExpertRanges(0, 0, ("constant",) * constants), width, nnx.Rngs(0))
    assert parameters_of(cheap) == constants * CHEAP_EXPERTS["constant"] * width
    x_TxD = jax.random.normal(jax.random.key(0), (tokens, width))
    routing = Routing(
        token=jnp.arange(tokens),
        expert=jnp.arange(tokens) % constants,
        weight=jnp.ones(tokens),
        scores=jnp.ones((tokens, constants)),
        losses={},
    )

    def run(cheap: nnx.Module) -> jax.Array:
        assert isinstance(cheap, CheapExperts)
        return cheap(x_TxD, routing)

    plain = ModelConfig(width=64, depth=2, heads=2, moe=MoEConfig())
    more = dataclasses.replace(plain, moe=MoEConfig(cheap_experts=("constant", "copy")))
    counted = (image_flops(more).router - image_flops(plain).router) / (2 * plain.num_tokens)
    # A column of scores for both, three vectors for one.
    assert counted == 2 * 64 * (2 + CHEAP_EXPERTS["constant"])
    expected = tokens * constants * 2 * CHEAP_EXPERTS["constant"] * width
    assert flops_of(run, cheap) == pytest.approx(expected, rel=0.01)


def test_experts_that_choose_have_no_cheap_ones():
    config = dataclasses.replace(tiny(None), model=dataclasses.replace(tiny().model, moe=MOE))
    with pytest.raises(ConfigError, match=r"cheap_experts is zero, copy, .* 'expert_choice'"):
        override(config, ["--config.model.moe.router.name=expert_choice"])
