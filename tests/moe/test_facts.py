"""The tables of facts against what XLA counts of the traced layers, for everything registered."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from dit_moe.config import EXPERTS, ROUTERS, ConfigError, MoEConfig, RouterSettings
from dit_moe.moe.routers import build_router
from dit_moe.moe.routing import Conditioning
from dit_moe.nn.feed_forward import FeedForward

# Wide enough that products outweigh what is elementwise a hundredfold.
T, D, E = 512, 768, 512


def flops_of(run: Callable[[nnx.Module], object], module: nnx.Module) -> float:
    """What XLA counts of a compiled function of a module; what its result does not need is gone."""
    graphdef, state = nnx.split(module)
    compiled = jax.jit(lambda state: run(nnx.merge(graphdef, state))).lower(state).compile()
    analysis = compiled.cost_analysis()
    assert analysis is not None
    return analysis["flops"]


def mixture(settings: RouterSettings, num_experts: int, **fields: Any) -> MoEConfig:
    """Two experts a token, where anybody chooses."""
    top_k = 1 if settings.chooser == "nobody" else 2
    return MoEConfig(router=settings, num_experts=num_experts, top_k=top_k, **fields)


def parameters_of(module: nnx.Module) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


@pytest.mark.parametrize("name", EXPERTS)
def test_kinds_of_experts(name: str):
    hidden, kind = 4 * D, EXPERTS[name]
    network = FeedForward(name, D, hidden, nnx.Rngs(0))
    x_TxD = jax.random.normal(jax.random.key(0), (T, D))
    assert parameters_of(network) == kind.parameters(D, hidden)
    counted = flops_of(lambda network: network(x_TxD), network)
    assert counted == pytest.approx(T * kind.flops(D, hidden), rel=0.01)


@pytest.mark.parametrize("name", ROUTERS.names)
def test_routers(name: str, monkeypatch):
    settings = ROUTERS[name]()
    moe = mixture(settings, E, unconditional_expert=settings.unconditional)
    router = build_router(moe, D, nnx.Rngs(0))
    assert isinstance(router, nnx.Module)
    assert parameters_of(router) == settings.parameters(D, moe)
    # An open folder has a tensor of every layer's parameter, and takes none without an axis.
    assert all(leaf.ndim for leaf in jax.tree.leaves(nnx.state(router, nnx.Param)))
    x_TxD = jax.random.normal(jax.random.key(0), (T, D))

    # XLA counts the integers of a draw's bits, too, and these are no products.
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: jnp.ones(shape))

    def assignments(router: nnx.Module) -> tuple[jax.Array, ...]:
        assert callable(router)
        previous = {n: jnp.zeros((T, *s)) for n, s in settings.hands_on(moe).items()}
        # In training, where DiffMoE computes a fixed number of tokens and logits may have noise.
        conditioning = Conditioning(jnp.zeros(T, bool), T // 2, True, previous)
        routing = router(x_TxD, conditioning)
        if routing.mixes is not None:
            return (routing.mixes.spread(routing.mixes.fill(x_TxD)),)
        # The predictor of DiffMoE is known by its loss alone while it trains.
        return routing.token, routing.expert, routing.weight, *routing.next_state.values()

    assert flops_of(assignments, router) == pytest.approx(T * settings.flops(D, moe), rel=0.01)


def test_routers_that_know_no_preference_have_the_sum_they_tell():
    """Zero parameters: equal scores, and cosines of 0."""
    x_TxD = jax.random.normal(jax.random.key(0), (T, 8))
    for name in ROUTERS.names:
        for activation in ("identity", "softmax", "sigmoid"):
            settings = ROUTERS[name]()
            for field in ("activation", "gate"):
                if hasattr(settings, field):
                    settings = dataclasses.replace(settings, **{field: activation})
            moe = mixture(settings, 8)
            router = build_router(moe, 8, nnx.Rngs(0))
            assert isinstance(router, nnx.Module)
            nnx.update(router, jax.tree.map(jnp.zeros_like, nnx.state(router)))
            assert callable(router)
            previous = {n: jnp.zeros((T, *s)) for n, s in settings.hands_on(moe).items()}
            # Noise is of training; but experts of the batch choose a fixed number only there.
            train = settings.chooser == "batch"
            routing = router(x_TxD, Conditioning(jnp.zeros(T, bool), T // 2, train, previous))
            told = settings.weight_sum(moe)
            if told is not None:
                assert float(routing.weight.sum()) / T == pytest.approx(told, rel=1e-5), name


def test_what_is_not_told_is_an_error():
    moe = MoEConfig()
    untold = RouterSettings(name="mine")
    for ask in (
        lambda: untold.weight_sum(moe),
        lambda: untold.parameters(8, moe),
        lambda: untold.flops(8, moe),
        lambda: untold.saved(8, moe, products_only=True),
    ):
        with pytest.raises(ConfigError, match="router 'mine' does not tell"):
            ask()
    for table, name in ((ROUTERS, "mine"), (EXPERTS, "mine")):
        with pytest.raises(ConfigError, match="is 'mine'; allowed: '"):
            table[name]
