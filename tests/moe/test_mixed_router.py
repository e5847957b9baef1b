"""MoE++'s router: experts of unlike cost, and gates that see those of the layer before."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_moe.config import MixedTopKRouterConfig, ModelConfig, MoEConfig
from dit_moe.models.block import Given
from dit_moe.models.trunk import Trunk
from dit_moe.moe import losses
from dit_moe.moe.layer import MoELayer
from dit_moe.moe.routers.cheap_choice import MixedTopKRouter
from dit_moe.moe.routing import Conditioning, Routing
from tests.moe.test_facts import flops_of, parameters_of
from tests.tiny import MOE_PLUS_PLUS

T, D, N, M = 24, 16, 4, 4
E = N + M


def moe_of(**settings: object) -> MoEConfig:
    """Four experts, then zero, copy and two constants."""
    router = MixedTopKRouterConfig(**settings)  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(MOE_PLUS_PLUS, router=router, shared_hidden_ratio=0)


def router_of(moe: MoEConfig) -> MixedTopKRouter:
    assert isinstance(moe.router, MixedTopKRouterConfig)
    return MixedTopKRouter(moe, moe.router, D, nnx.Rngs(0))


def given(before_TxE: jax.Array | None = None, tokens: int = T) -> Conditioning:
    previous = {} if before_TxE is None else {"logits": before_TxE}
    return Conditioning(jnp.zeros(tokens, bool), tokens, True, previous)


TOKENS, BEFORE = jax.random.normal(jax.random.key(1), (T, D)), jnp.ones((T, E)).cumsum(axis=1)


@pytest.mark.parametrize("scores", ["linear", "two_layers"])
@pytest.mark.parametrize("weights", ["softmax", "non_zero"])
def test_in_loops(weights: str, scores: str):
    """Token after token, in numpy."""
    moe = moe_of(weights=weights, scores=scores, tau=0.5, balance_coef=2.0)
    router = router_of(moe)
    routing = router(TOKENS, given(BEFORE))
    kernels = [np.asarray(kernel[...], np.float64) for kernel in router.kernels]
    weight, chose, mean = np.zeros((T, E)), np.zeros(E), np.zeros(E)
    for t, x in enumerate(np.asarray(TOKENS, np.float64)):
        for kernel in kernels[:-1]:
            x = np.tanh(x @ kernel)
        logits = x @ kernels[-1] + np.asarray(BEFORE[t]) @ np.asarray(router.residual[...])
        np.testing.assert_allclose(routing.hand_on["logits"][t], logits, atol=1e-5)
        p = np.exp(logits) / np.exp(logits).sum()
        chosen = np.argsort(-p)[: moe.top_k]
        total = sum(p[e] for e in chosen if e != N) if weights == "non_zero" else 1.0
        for e in chosen:
            chose[e] += 1 / T
            weight[t, e] = p[e] if e == N else p[e] / total
        mean += p / T
    assert len(set(np.asarray(routing.expert))) > N
    actual = np.zeros((T, E))
    actual[routing.token, routing.expert] = routing.weight
    np.testing.assert_allclose(actual, weight, atol=1e-6)
    expected = 2.0 * (np.sum(chose[:N] * mean[:N]) + 0.5 * np.sum(chose[N:] * mean[N:]))
    np.testing.assert_allclose(routing.losses["balance"], expected, rtol=1e-5)


def chosen_pair(moe: MoEConfig, pair: tuple[int, int]) -> tuple[MoELayer, Routing, jax.Array]:
    """A layer in which every token chooses this pair, what it decided and what it gives."""
    layer = MoELayer(moe, D, nnx.Rngs(0))
    before_TxE = jnp.zeros((T, E)).at[:, jnp.array(pair)].set(jnp.array([60.0, 61.0]))
    layer.router.residual[...] = jnp.eye(E)
    y_TxD, routing = layer(TOKENS, given(before_TxE))
    np.testing.assert_array_equal(np.sort(routing.expert.reshape(T, 2)), [sorted(pair)] * T)
    return layer, routing, y_TxD


def test_beside_a_zero_expert_another_is_all():
    """With the weights of the public code: {zero, e} = e, {zero, copy} = x."""
    moe = moe_of(weights="non_zero")
    layer, routing, y_TxD = chosen_pair(moe, (N, 1))
    own = layer.experts.bank().expert(1, jnp.float32)
    gate_TxF, up_TxF = jnp.split(TOKENS @ own.w_in, 2, axis=-1)
    np.testing.assert_allclose(y_TxD, jax.nn.silu(gate_TxF) * up_TxF @ own.w_out, atol=1e-5)
    np.testing.assert_allclose(routing.weight.reshape(T, 2).max(axis=1), 1, rtol=1e-6)
    _, _, y_TxD = chosen_pair(moe, (N, N + 1))
    np.testing.assert_allclose(y_TxD, TOKENS, rtol=1e-6)
    # The paper's weights leave the zero expert its share.
    _, routing, y_TxD = chosen_pair(moe_of(), (N, N + 1))
    share_T = routing.scores[:, N + 1, None]
    assert share_T.min() < 0.5
    np.testing.assert_allclose(y_TxD, share_T * TOKENS, rtol=1e-5)


def test_a_constant_that_knows_nothing_is_half_token_half_vector():
    moe = moe_of(weights="non_zero")
    layer = MoELayer(moe, D, nnx.Rngs(0))
    assert layer.cheap is not None
    layer.cheap.kernel[...] = jnp.zeros_like(layer.cheap.kernel[...])
    layer.router.residual[...] = jnp.eye(E)
    before_TxE = jnp.zeros((T, E)).at[:, jnp.array([N, N + 3])].set(60.0)
    y_TxD, _ = layer(TOKENS, given(before_TxE))
    np.testing.assert_allclose(y_TxD, TOKENS / 2 + layer.cheap.vector[1] / 2, rtol=1e-5, atol=1e-6)


def test_the_balance_loss_rests_where_cheap_experts_have_more():
    """No change of probabilities that all tokens share makes it less where the load is as 1 / eta,
    and that is the share of routed experts that is told."""
    tau, moe = 0.5, MoEConfig(num_experts=2, top_k=1, cheap_experts=("zero", "copy"))
    eta_E = jnp.array([1.0, 1.0, tau, tau])
    expert_TxK = jnp.array([0, 1, 2, 2, 3, 3])[:, None]

    def loss(logits_E: jax.Array, expert_TxK: jax.Array = expert_TxK) -> jax.Array:
        p_TxE = jnp.broadcast_to(jax.nn.softmax(logits_E), (len(expert_TxK), 4))
        return losses.uneven_balance_loss(p_TxE, expert_TxK, eta_E)

    value, gradient_E = jax.value_and_grad(loss)(-jnp.log(eta_E))
    np.testing.assert_allclose(gradient_E, 0, atol=1e-7)
    np.testing.assert_allclose(value, 1 / (1 / eta_E).sum(), rtol=1e-6)
    assert MixedTopKRouterConfig(tau=tau).computed(moe) == pytest.approx(moe.top_k * 2 / 6)
    # From an even load it moves tokens to cheap experts.
    even_E = jax.grad(loss)(jnp.zeros(4), jnp.arange(4)[:, None])
    assert (np.sign(even_E) == [1, 1, -1, -1]).all()


def test_experts_that_compute():
    """MoE++ 1B: 16 experts to 4 cheap ones, two of them a token, tau 0.75."""
    moe = MoEConfig(
        router=MixedTopKRouterConfig(),
        num_experts=16,
        top_k=2,
        cheap_experts=("constant", "constant", "copy", "zero"),
    )
    assert moe.computed_experts == pytest.approx(1.5)
    even = dataclasses.replace(moe, router=MixedTopKRouterConfig(tau=1.0))
    assert even.computed_experts == pytest.approx(2 * 16 / 20)


def test_without_a_residual_matrix_the_layer_before_is_not_seen():
    with_zeros, without = router_of(moe_of()), router_of(moe_of(gating_residual=False))
    with_zeros.residual[...] = jnp.zeros((E, E))
    a, b = with_zeros(TOKENS, given(BEFORE)), without(TOKENS, given())
    np.testing.assert_array_equal(a.scores, b.scores)
    np.testing.assert_array_equal(a.weight, b.weight)
    assert b.hand_on == {}
    # Nor is it where there is none.
    fresh = router_of(moe_of())
    np.testing.assert_array_equal(fresh(TOKENS, given(jnp.zeros((T, E)))).scores, b.scores)
    assert np.abs(fresh(TOKENS, given(BEFORE)).scores - b.scores).max() > 1e-3


def test_logits_are_handed_on_through_the_scan():
    """Layer after layer in numpy; the gates of adaLN-zero are shut, so that tokens stay."""
    moe = moe_of()
    model = ModelConfig(width=D, depth=3, heads=2, num_classes=10, moe=moe)
    trunk = Trunk(model, nnx.Rngs(0))
    x_NxSxD = jax.random.normal(jax.random.key(0), (2, 4, D))
    _, (routing,) = trunk(x_NxSxD, Given(jnp.zeros((2, D)), jnp.zeros(2, bool)))
    h_TxD = np.asarray(jax.nn.standardize(x_NxSxD, epsilon=1e-6)).reshape(8, D)
    router = trunk.segments[0].blocks[0].feed_forward.router
    logits_TxE = np.zeros((8, E))
    for layer in range(3):
        own_TxE = h_TxD @ np.asarray(router.kernels[0][...][layer])
        logits_TxE = own_TxE + logits_TxE @ np.asarray(router.residual[...][layer])
        p_TxE = np.exp(logits_TxE) / np.exp(logits_TxE).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(routing.scores[layer], p_TxE, atol=1e-5)


@pytest.mark.parametrize("scores", ["linear", "two_layers"])
def test_facts(scores: str):
    """Against XLA, as for all routers with their defaults in test_facts.py."""
    tokens, width, experts = 256, 256, 128
    settings = MixedTopKRouterConfig(scores=scores)  # pyright: ignore[reportArgumentType]
    moe = MoEConfig(router=settings, num_experts=experts, top_k=2)
    router = MixedTopKRouter(moe, settings, width, nnx.Rngs(0))
    assert parameters_of(router) == settings.parameters(width, moe)
    x_TxD = jax.random.normal(jax.random.key(0), (tokens, width))
    before_TxE = jax.random.normal(jax.random.key(1), (tokens, experts))

    def logits(router: nnx.Module) -> jax.Array:
        assert isinstance(router, MixedTopKRouter)
        return router(x_TxD, given(before_TxE, tokens)).hand_on["logits"]

    counted = tokens * settings.flops(width, moe)
    assert flops_of(logits, router) == pytest.approx(counted, rel=0.01)
