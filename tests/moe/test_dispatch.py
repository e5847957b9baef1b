"""Every back end of dispatch, and what is particular to each."""

from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dit_moe.config import ExpertKind
from dit_moe.moe.backends.ragged import grouped
from dit_moe.moe.dispatch import BACKENDS, dispatch, resolve_backend
from dit_moe.nn.feed_forward import ExpertWeights
from tests.moe.dispatch_contract import (
    DispatchContract,
    assert_close,
    make_experts,
    routing_of,
    value_and_grads,
)


class TestReference(DispatchContract):
    backend = "reference"


class TestBlocked(DispatchContract):
    backend = "blocked"


class TestRagged(DispatchContract):
    backend = "ragged"


@pytest.mark.skipif(not find_spec("tokamax"), reason="tokamax is not installed")
class TestTokamax(DispatchContract):
    backend = "tokamax"


@flax.struct.dataclass
class Kept:
    """A bank that looks its experts up: some are stored once for several (pruning by `remap`)."""

    stored: ExpertWeights
    place: jax.Array
    """[E] int32: where each expert is stored."""

    @property
    def kind(self) -> ExpertKind:
        return self.stored.kind

    @property
    def num_experts(self) -> int:
        return len(self.place)

    def expert(self, index: jax.Array | int, dtype: jnp.dtype) -> ExpertWeights:
        return self.stored.expert(self.place[index], dtype)

    def stack(self, dtype: jnp.dtype) -> ExpertWeights:
        return jax.tree.map(lambda w: w[self.place], self.stored.stack(dtype))


class OfBank(DispatchContract):
    trainable = False

    def bank(self, experts: ExpertWeights) -> Kept:
        place_E = jnp.arange(experts.num_experts)[::-1]
        return Kept(jax.tree.map(lambda w: w[place_E], experts), place_E)


class TestBankWithReference(OfBank):
    backend = "reference"


class TestBankWithBlocked(OfBank):
    backend = "blocked"


class TestBankWithRagged(OfBank):
    backend = "ragged"


def test_every_back_end_keeps_the_contract() -> None:
    held = {c.backend for c in DispatchContract.__subclasses__() if hasattr(c, "backend")}
    assert held == set(BACKENDS)


def test_a_bank_that_cannot_be_trained_says_so() -> None:
    rng = np.random.default_rng(8)
    routing, tokens, num_experts = routing_of("balanced", rng)
    bank = TestBankWithBlocked().bank(make_experts(rng, num_experts, 16, 24, "swiglu", False))
    x = jnp.ones((tokens, 16))
    with pytest.raises(TypeError, match="Kept is a bank of experts that cannot be trained"):
        jax.grad(lambda x: dispatch(x, routing, bank, backend="blocked").sum())(x)


def test_blocked_gradients_match_finite_differences() -> None:
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        routing, tokens, num_experts = routing_of("unused slots", rng)
        experts = make_experts(rng, num_experts, 5, 6, "swiglu", True)
        x = jnp.asarray(rng.normal(size=(tokens, 5)))
        weight = routing.weight.astype(jnp.float64)
        experts = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), experts)

        @jax.jit
        def run(x: jax.Array, weight: jax.Array, experts: ExpertWeights) -> jax.Array:
            return dispatch(x, replace(routing, weight=weight), experts, backend="blocked")

        check_grads(run, (x, weight, experts), order=1, modes=["rev"], rtol=1e-6, atol=1e-6)


@jax.custom_vjp
def careless_ragged_dot(rows: jax.Array, w: jax.Array, size: jax.Array) -> jax.Array:
    """As of a kernel that never writes the rows of no expert, forward or backward."""
    return spoiled(jax.lax.ragged_dot(rows, w, size), size)


def spoiled(rows: jax.Array, size: jax.Array, value: float = jnp.nan) -> jax.Array:
    return jnp.where((jnp.arange(len(rows)) < size.sum())[:, None], rows, value)


def careless_gradient(residuals: Any, cotangent: jax.Array) -> Any:
    rows, w, size = residuals
    _, pull = jax.vjp(lambda rows, w: jax.lax.ragged_dot(rows, w, size), rows, w)
    drows, dw = pull(spoiled(cotangent, size, 0))
    return spoiled(drows, size), dw, None


careless_ragged_dot.defvjp(lambda *args: (careless_ragged_dot(*args), args), careless_gradient)


def test_rows_that_a_kernel_left_unwritten_reach_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def ragged_dot(rows: jax.Array, w: jax.Array, size: jax.Array, **_: Any) -> jax.Array:
        return careless_ragged_dot(rows, w, size)

    rng = np.random.default_rng(7)
    routing, tokens, num_experts = routing_of("experts out of range", rng)
    assert (routing.expert >= num_experts).any()
    experts = make_experts(rng, num_experts, 16, 24, "gelu", True)
    x = jnp.asarray(rng.normal(size=(tokens, 16)), jnp.float32)
    monkeypatch.setitem(BACKENDS, "careless", partial(grouped, ragged_dot))
    actual, expected = (
        value_and_grads(x, routing, experts, jnp.sin(x), backend)
        for backend in ("careless", "reference")
    )
    assert_close(actual, expected, 1e-5)


def test_auto_is_blocked_on_cpu() -> None:
    rng = np.random.default_rng(5)
    routing, tokens, num_experts = routing_of("balanced", rng)
    experts = make_experts(rng, num_experts, 16, 24, "swiglu", False)
    x = jnp.asarray(rng.normal(size=(tokens, 16)), jnp.float32)
    expected = dispatch(x, routing, experts, backend="blocked")
    if jax.default_backend() == "cpu":
        np.testing.assert_array_equal(dispatch(x, routing, experts), expected)


@pytest.mark.parametrize(
    ("platform", "installed", "expected"),
    [
        ("cpu", True, "blocked"),
        ("tpu", False, "ragged"),
        ("gpu", True, "tokamax"),
        ("gpu", False, "blocked"),
    ],
)
def test_auto_by_platform(platform, installed, expected, monkeypatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: installed or None)
    assert resolve_backend("auto") == expected
    assert resolve_backend("reference") == "reference"


def test_unknown_names_are_told() -> None:
    rng = np.random.default_rng(6)
    routing, tokens, num_experts = routing_of("a single token", rng)
    experts = make_experts(rng, num_experts, 16, 24, "swiglu", False)
    x = jnp.ones((tokens, 16))
    with pytest.raises(ValueError, match=r"'fast'.*auto, reference, blocked, ragged"):
        dispatch(x, routing, experts, backend="fast")
    with pytest.raises(ValueError, match=r"'relu'.*'swiglu', 'gelu', 'silu'"):
        dispatch(x, routing, replace(experts, activation="relu"))
