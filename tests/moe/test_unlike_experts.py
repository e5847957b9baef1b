"""Experts of several kinds and widths in one mixture: feed-forward and recurrent ones (Hecto)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_moe.config import (
    RECURRENT,
    ConfigError,
    ExpertChoiceRouterConfig,
    ExpertGroup,
    ModelConfig,
    MoEConfig,
    NoisyTopKRouterConfig,
)
from dit_moe.config.files import from_dict, to_dict
from dit_moe.moe.experts.recurrent import RecurrentExperts
from dit_moe.moe.layer import MoELayer
from dit_moe.moe.routing import Conditioning, Routing
from dit_moe.moe.statistics import routing_statistics
from dit_moe.nn.feed_forward import Experts
from dit_moe.plan.flops import image_flops
from tests.moe.test_facts import flops_of, parameters_of
from tests.tiny import HECTO, SOFT_MOE, UNLIKE, tiny

N, S, D = 3, 6, 8
T = N * S


def tokens(seed: int = 1) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (T, D))


def live(module: nnx.Module) -> nnx.Module:
    """The module with no parameter at zero."""
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(0, 0.5, p.shape), jnp.float32), nnx.state(module)
    )
    nnx.update(module, state)
    return module


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gru_by_hand(x_SxD: np.ndarray, experts: RecurrentExperts, r: int) -> np.ndarray:
    """One expert over one image, token after token, direction after direction: [S, D]."""
    w_in, b_in, w_state, b_state, w_out, b_out = (
        np.asarray(p[...], np.float64)
        for p in (
            experts.w_in,
            experts.b_in,
            experts.w_state,
            experts.b_state,
            experts.w_out,
            experts.b_out,
        )
    )
    directions, h = b_state.shape[1:]
    states = np.zeros((len(x_SxD), directions, h))
    for p in range(directions):
        own = slice(3 * h * p, 3 * h * (p + 1))
        state = np.zeros(h)
        order = range(len(x_SxD)) if p == 0 else reversed(range(len(x_SxD)))
        for s in order:
            a_r, a_z, a_n = np.split(x_SxD[s] @ w_in[r, :, own] + b_in[r, own], 3)
            u_r, u_z, u_n = np.split(state @ w_state[r, p], 3)
            reset, update = sigmoid(a_r + u_r), sigmoid(a_z + u_z)
            new = np.tanh(a_n + reset * (u_n + b_state[r, p]))
            state = (1 - update) * new + update * state
            states[s, p] = state
    return states.reshape(len(x_SxD), -1) @ w_out[r] + b_out[r]


def recurrent(kind: str, number: int = 2) -> RecurrentExperts:
    module = live(RecurrentExperts(kind, number, D, 5, nnx.Rngs(0)))
    assert isinstance(module, RecurrentExperts)
    return module


@pytest.mark.parametrize("kind", RECURRENT)
def test_the_recurrence_by_hand(kind):
    experts, x_TxD = recurrent(kind), tokens()
    weight_TxR = jax.random.uniform(jax.random.key(2), (T, 2))
    expected = np.zeros((T, D))
    for n in range(N):
        image = slice(n * S, (n + 1) * S)
        for r in range(2):
            out = gru_by_hand(np.asarray(x_TxD[image], np.float64), experts, r)
            expected[image] += np.asarray(weight_TxR[image, r, None]) * out
    np.testing.assert_allclose(experts(x_TxD, weight_TxR, S), expected, atol=1e-5)


@pytest.mark.parametrize("kind", RECURRENT)
def test_the_order_of_the_tokens_counts_and_other_images_do_not(kind):
    experts, x_TxD, ones = recurrent(kind), tokens(), jnp.ones((T, 2))
    y_NxSxD = experts(x_TxD, ones, S).reshape(N, S, D)
    turned = x_TxD.reshape(N, S, D)[:, ::-1].reshape(T, D)
    back = experts(turned, ones, S).reshape(N, S, D)[:, ::-1]
    assert np.abs(back - y_NxSxD).max() > 0.01
    other = x_TxD.at[S : 2 * S].set(0.0)
    changed = experts(other, ones, S).reshape(N, S, D)
    np.testing.assert_array_equal(changed[0], y_NxSxD[0])
    np.testing.assert_array_equal(changed[2], y_NxSxD[2])
    # The last token of an image reaches the first one only from behind.
    later = x_TxD.at[S - 1].set(0.0)
    first = experts(later, ones, S)[0] - y_NxSxD[0, 0]
    assert (np.abs(first).max() > 1e-3) == (RECURRENT[kind].directions == 2)


def test_closed_forms_of_the_recurrence():
    experts, x_TxD = recurrent("gru", 1), tokens()
    h = experts.b_state.shape[-1]
    ones = jnp.ones((T, 1))
    # An update gate that is open keeps the state at its beginning, which is 0.
    experts.b_in[...] = experts.b_in[...].at[:, h : 2 * h].set(1e4)
    kept = experts(x_TxD, ones, S)
    np.testing.assert_allclose(kept, np.broadcast_to(experts.b_out[...][0], (T, D)), atol=1e-6)
    # One that is shut, without a way from the state: every token by itself.
    experts.b_in[...] = experts.b_in[...].at[:, h : 2 * h].set(-1e4)
    experts.w_state[...] = jnp.zeros_like(experts.w_state[...])
    alone = experts(x_TxD, ones, S)
    order = np.random.default_rng(0).permutation(T)
    np.testing.assert_allclose(experts(x_TxD[order], ones, S), alone[order], atol=1e-6)
    # One token: (1 - z) tanh(...).
    one = recurrent("gru", 1)
    found = one(x_TxD, ones, 1)
    for t in range(3):
        by_hand = gru_by_hand(np.asarray(x_TxD[t : t + 1], np.float64), one, 0)[0]
        np.testing.assert_allclose(found[t], by_hand, atol=1e-5)


@pytest.mark.parametrize("kind", RECURRENT)
def test_facts_of_recurrent_kinds(kind, monkeypatch):
    """Against XLA, which counts a loop once: here its steps stand one after another."""
    number, width, hidden, s = 2, 256, 128, 4
    experts = RecurrentExperts(kind, number, width, hidden, nnx.Rngs(0))
    facts = RECURRENT[kind]
    assert parameters_of(experts) == number * facts.parameters(width, hidden)
    scan = jax.lax.scan
    monkeypatch.setattr(jax.lax, "scan", lambda *a, **k: scan(*a, **k, unroll=True))
    x_TxD = jax.random.normal(jax.random.key(0), (64 * s, width))
    weight_TxR = jnp.ones((64 * s, number))

    def run(module: nnx.Module) -> jax.Array:
        assert isinstance(module, RecurrentExperts)
        return module(x_TxD, weight_TxR, s)

    expected = number * facts.flops(width, hidden) * 64 * s
    assert flops_of(run, experts) == pytest.approx(expected, rel=0.01)


def layer_of(moe: MoEConfig) -> tuple[MoELayer, Routing, np.ndarray]:
    layer = live(MoELayer(moe, D, nnx.Rngs(0)))
    assert isinstance(layer, MoELayer)
    y_TxD, routing = layer(tokens(), Conditioning(jnp.zeros(T, bool), S))
    return layer, routing, np.asarray(y_TxD)


def of_feed_forward(x: np.ndarray, experts: Experts, index: int) -> np.ndarray:
    own = experts.bank().expert(index, jnp.float32)
    h = np.asarray(x @ np.asarray(own.w_in))
    if own.kind.name == "swiglu":
        gate, up = np.split(h, 2)
        return (gate * sigmoid(gate) * up) @ np.asarray(own.w_out)
    h = np.asarray(jax.nn.gelu(h + np.asarray(own.b_in), approximate=True))
    return h @ np.asarray(own.w_out) + np.asarray(own.b_out)


@pytest.mark.parametrize("choose_by", ["token", "image"])
def test_the_layer_is_the_sum_over_all_groups(choose_by):
    """One assignment after another, in numpy."""
    moe = dataclasses.replace(UNLIKE, choose_by=choose_by, shared_hidden_ratio=0)
    layer, routing, y_TxD = layer_of(moe)
    x_TxD, expected = np.asarray(tokens(), np.float64), np.zeros((T, D))
    assert layer.unlike is not None
    wide, recurrent = layer.unlike
    for token, expert, weight in zip(routing.token, routing.expert, routing.weight, strict=True):
        t, e = int(token), int(expert)
        if e < 2:
            out = of_feed_forward(x_TxD[t], layer.experts, e)
        elif e < 4:
            out = of_feed_forward(x_TxD[t], wide, e - 2)
        else:
            image = x_TxD.reshape(N, S, D)[t // S]
            out = gru_by_hand(image, recurrent, e - 4)[t % S]
        expected[t] += float(weight) * out
    np.testing.assert_allclose(y_TxD, expected, atol=5e-5 * np.abs(expected).max())
    if choose_by == "token":
        assert set(np.unique(routing.expert)) == set(range(6))  # all kinds are tried


def test_an_image_goes_where_its_mean_token_goes():
    by_image = dataclasses.replace(UNLIKE, choose_by="image")
    layer, routing, _ = layer_of(by_image)
    mean_NxD = tokens().reshape(N, S, D).mean(axis=1)
    alone = layer.router(mean_NxD, Conditioning(jnp.zeros(N, bool), 1))
    for name in ("expert", "weight"):
        found = np.asarray(getattr(routing, name)).reshape(N, S, -1)
        own = np.asarray(getattr(alone, name)).reshape(N, 1, -1)
        np.testing.assert_array_equal(found, np.broadcast_to(own, found.shape))
    np.testing.assert_array_equal(routing.token, np.repeat(np.arange(T), UNLIKE.top_k))
    np.testing.assert_array_equal(routing.scores[::S], alone.scores)
    np.testing.assert_array_equal(routing.losses["balance"], alone.losses["balance"])
    found = routing_statistics(jax.tree.map(lambda a: a[None], routing), layer.ranges)
    assert found["load"].shape == (1, 6)
    np.testing.assert_allclose(found["capacity"], [UNLIKE.top_k])


def test_gradients_reach_every_kind():
    layer = live(MoELayer(UNLIKE, D, nnx.Rngs(0)))
    conditioning = Conditioning(jnp.zeros(T, bool), S)
    gradient = nnx.grad(lambda layer: jnp.sum(layer(tokens(), conditioning)[0] ** 2))(layer)
    for parameter in jax.tree.leaves(gradient):
        assert jnp.abs(parameter).max() > 0


def test_one_group_of_the_same_kind_is_the_plain_mixture():
    """The same experts in two stacks."""
    plain = MoEConfig(num_experts=4, top_k=2, hidden_ratio=1, shared_hidden_ratio=0)
    split = dataclasses.replace(plain, unlike=(ExpertGroup("swiglu", 3, 1.0),))
    whole, parts = (live(MoELayer(moe, D, nnx.Rngs(0))) for moe in (plain, split))
    assert isinstance(whole, MoELayer)
    assert isinstance(parts, MoELayer)
    parts.router = whole.router
    assert parts.unlike is not None
    for name in ("w_in", "w_out"):
        own = getattr(whole.experts, name)[...]
        getattr(parts.experts, name)[...] = own[:1]
        getattr(parts.unlike[0], name)[...] = own[1:]
    conditioning = Conditioning(jnp.zeros(T, bool), S)
    np.testing.assert_allclose(
        parts(tokens(), conditioning)[0], whole(tokens(), conditioning)[0], atol=1e-4
    )


def test_plans_count_what_computes():
    """Recurrent experts compute all tokens; the others share what is routed."""
    plain = ModelConfig(width=64, depth=1, heads=2, moe=MoEConfig(num_experts=4, top_k=2))
    gru = ExpertGroup("gru", 1, 0.5)
    wide = ExpertGroup("swiglu", 1, 8.0)
    s, found = plain.num_tokens, {}
    for name, unlike in (("plain", ()), ("gru", (gru,)), ("wide", (wide,))):
        moe = dataclasses.replace(plain.moe, unlike=unlike)  # pyright: ignore
        found[name] = image_flops(dataclasses.replace(plain, moe=moe))
    assert found["gru"].experts == found["plain"].experts * 3 / 4
    assert found["gru"].recurrent == s * gru.facts.flops(64, 32)
    assert found["wide"].experts == found["plain"].experts * (3 + 2) / 4
    by_image = dataclasses.replace(plain.moe, choose_by="image")  # pyright: ignore
    counted = image_flops(dataclasses.replace(plain, moe=by_image))
    assert counted.router == found["plain"].router / s


def test_configs_round_trip_and_say_what_is_wrong():
    for moe in (HECTO, UNLIKE):
        assert from_dict(to_dict(tiny(moe))) == tiny(moe)
    with pytest.raises(ValueError, match="unlike has 4 experts with num_experts 4; allowed: fewer"):
        dataclasses.replace(UNLIKE, num_experts=4)
    with pytest.raises(ValueError, match="choose_by is 'image' with router 'expert_choice'"):
        MoEConfig(router=ExpertChoiceRouterConfig(), choose_by="image")
    for change, message in (
        ({"kind": "lstm"}, r"unlike\.0\.kind is 'lstm'; allowed: .*'gru', 'bigru'"),
        ({"hidden_ratio": 0.3}, r"unlike\.0\.hidden_ratio is 0\.3; allowed: a ratio"),
    ):
        values = to_dict(tiny(UNLIKE))
        values["model"]["moe"]["unlike"] = [{"kind": "gru", **change}]
        with pytest.raises(ConfigError, match=message):
            from_dict(values)
    with pytest.raises(ValueError, match="unlike has 1 experts with router 'soft'"):
        dataclasses.replace(SOFT_MOE, unlike=(ExpertGroup("gru"),))


def test_noise_of_a_router_is_drawn_for_images():
    moe = dataclasses.replace(UNLIKE, router=NoisyTopKRouterConfig(), choose_by="image")
    layer = MoELayer(moe, D, nnx.Rngs(0))
    conditioning = Conditioning(jnp.zeros(T, bool), S, train=True)
    expert_NxS = layer(tokens(), conditioning)[1].expert.reshape(N, S, -1)
    np.testing.assert_array_equal(expert_NxS, np.broadcast_to(expert_NxS[:, :1], expert_NxS.shape))
