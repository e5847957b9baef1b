"""Every back end of dispatch against the reference, and the reference against plain numpy."""

import math
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from jax.test_util import check_grads

from dit_moe.moe.backends.ragged import grouped
from dit_moe.moe.dispatch import BACKENDS, dispatch, resolve_backend
from dit_moe.moe.routing import Routing
from dit_moe.nn.feed_forward import ExpertWeights

INSTALLED = [name for name in BACKENDS if name != "tokamax" or find_spec("tokamax")]
FAST = [name for name in INSTALLED if name != "reference"]


def make_experts(
    rng: np.random.Generator, num: int, width: int, hidden: int, activation: str, bias: bool
) -> ExpertWeights:
    inner = 2 * hidden if activation == "swiglu" else hidden

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape) / math.sqrt(width), jnp.float32)

    return ExpertWeights(
        w_in=normal(num, width, inner),
        w_out=normal(num, hidden, width),
        b_in=normal(num, inner) if bias else None,
        b_out=normal(num, width) if bias else None,
        activation=activation,
    )


def make_routing(token: Any, expert: Any, weight: Any, tokens: int, num_experts: int) -> Routing:
    return Routing(
        token=jnp.asarray(token, jnp.int32),
        expert=jnp.asarray(expert, jnp.int32),
        weight=jnp.asarray(weight, jnp.float32),
        scores=jnp.zeros((tokens, num_experts)),
        losses={},
    )


# Tokens, experts and assignments a token. Most cases share a shape, so that they share a compile.
CASES = {
    "balanced": (96, 8, 2),
    "empty experts": (96, 8, 2),
    "one expert takes everything": (96, 8, 2),
    "expert choice": (96, 8, 2),
    "unused slots": (96, 8, 2),
    "experts out of range": (96, 8, 2),
    "large blocks": (300, 2, 2),
    "every expert for every token": (20, 4, 4),
    "a single token": (1, 4, 2),
    "a single expert": (70, 1, 1),
}


def routing_of(case: str, rng: np.random.Generator) -> tuple[Routing, int, int]:
    """A routing, its number of tokens and its number of experts."""
    tokens, num_experts, k = CASES[case]
    token = np.repeat(np.arange(tokens), k)
    expert = np.argsort(rng.random((tokens, num_experts)), axis=1)[:, :k].ravel()
    weight = rng.random(tokens * k)
    if case == "empty experts":
        expert = 3 * (expert % 2) + 1
    elif case == "one expert takes everything":
        expert = np.full_like(expert, 6)
    elif case == "expert choice":
        # Each expert picks its tokens, so that some tokens have no expert at all.
        capacity = tokens * k // num_experts
        token = np.argsort(rng.random((num_experts, tokens)), axis=1)[:, :capacity].ravel()
        expert = np.repeat(np.arange(num_experts), capacity)
    elif case == "unused slots":
        token[1::2], expert[1::2], weight[1::2] = 0, 0, 0
    elif case == "experts out of range":
        expert[::3] = num_experts + np.arange(len(expert[::3])) % 2
    return make_routing(token, expert, weight, tokens, num_experts), tokens, num_experts


def numpy_loop(x: np.ndarray, routing: Routing, experts: ExpertWeights) -> np.ndarray:
    """One assignment after another, in float64."""
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), experts)
    y = np.zeros(x.shape)
    for token, expert, weight in zip(routing.token, routing.expert, routing.weight, strict=True):
        if expert >= weights.w_in.shape[0]:
            continue
        h = x[token] @ weights.w_in[expert]
        if weights.b_in is not None:
            h = h + weights.b_in[expert]
        if weights.activation == "swiglu":
            gate, up = np.split(h, 2)
            act = gate / (1 + np.exp(-gate)) * up
        else:
            act = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        out = act @ weights.w_out[expert]
        if weights.b_out is not None:
            out = out + weights.b_out[expert]
        y[token] += float(weight) * out
    return y


def assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    """Compares trees by the error relative to each array's largest entry."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * (abs(other).max() + 1e-30))


@partial(jax.jit, static_argnames="backend")
def value_and_grads(
    x: jax.Array, routing: Routing, experts: ExpertWeights, cotangent: jax.Array, backend: str
) -> tuple[jax.Array, Any]:
    def run(x: jax.Array, weight: jax.Array, experts: ExpertWeights) -> jax.Array:
        return dispatch(x, replace(routing, weight=weight), experts, backend=backend)

    y, pull = jax.vjp(run, x, routing.weight, experts)
    return y, pull(cotangent)


@pytest.mark.parametrize(
    ("case", "activation", "bias"),
    [(case, "swiglu", False) for case in CASES]
    + [(case, "gelu", True) for case in CASES if CASES[case] == CASES["balanced"]],
)
def test_back_ends_agree_in_value_and_gradient(case: str, activation: str, bias: bool) -> None:
    rng = np.random.default_rng(0)
    routing, tokens, num_experts = routing_of(case, rng)
    experts = make_experts(rng, num_experts, 16, 24, activation, bias)
    x = jnp.asarray(rng.normal(size=(tokens, 16)), jnp.float32)
    cotangent = jnp.asarray(rng.normal(size=x.shape), jnp.float32)

    y, grads = value_and_grads(x, routing, experts, cotangent, "reference")
    assert_close(y, numpy_loop(np.asarray(x), routing, experts), 1e-5)
    for backend in FAST:
        other_y, other_grads = value_and_grads(x, routing, experts, cotangent, backend)
        assert_close(other_y, y, 1e-5)
        assert_close(other_grads, grads, 1e-5)


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


@pytest.mark.parametrize("backend", INSTALLED)
def test_bfloat16_is_near_float32(backend: str) -> None:
    rng = np.random.default_rng(2)
    routing, tokens, num_experts = routing_of("balanced", rng)
    experts = make_experts(rng, num_experts, 16, 24, "swiglu", True)
    x = jnp.asarray(rng.normal(size=(tokens, 16)), jnp.bfloat16)
    cotangent = jnp.asarray(rng.normal(size=x.shape), jnp.bfloat16)

    y, grads = value_and_grads(x, routing, experts, cotangent, backend)
    assert y.dtype == grads[0].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(grads[1:])} == {jnp.dtype(jnp.float32)}
    wide = value_and_grads(
        x.astype(jnp.float32), routing, experts, cotangent.astype(jnp.float32), "reference"
    )
    assert_close((y, grads), wide, 2e-2)


@pytest.mark.parametrize("backend", FAST)
def test_inside_a_checkpointed_scan_over_layers(backend: str) -> None:
    rng = np.random.default_rng(3)
    routing, tokens, num_experts = routing_of("balanced", rng)
    layers = [make_experts(rng, num_experts, 16, 24, "swiglu", False) for _ in range(3)]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    x = jnp.asarray(rng.normal(size=(tokens, 16)), jnp.float32)

    def scanned(x: jax.Array, stack: ExpertWeights) -> jax.Array:
        @jax.checkpoint
        def layer(x: jax.Array, experts: ExpertWeights) -> tuple[jax.Array, None]:
            return x + dispatch(x, routing, experts, backend=backend), None

        return jnp.sum(jax.lax.scan(layer, x, stack)[0] ** 2)

    def unrolled(x: jax.Array, stack: ExpertWeights) -> jax.Array:
        for i in range(len(layers)):
            experts = jax.tree.map(lambda leaf: leaf[i], stack)  # noqa: B023
            x = x + dispatch(x, routing, experts, backend="reference")
        return jnp.sum(x**2)

    expected = jax.jit(jax.value_and_grad(unrolled, argnums=(0, 1)))(x, stack)
    assert_close(jax.jit(jax.value_and_grad(scanned, argnums=(0, 1)))(x, stack), expected, 1e-5)


@pytest.mark.parametrize(
    ("backend", "check_vma"),
    [(name, check) for name in FAST for check in (False, True) if name != "tokamax" or not check],
)
def test_inside_shard_map_over_tokens(backend: str, check_vma: bool) -> None:
    rng = np.random.default_rng(4)
    devices, k, num_experts = len(jax.devices()), 2, 4
    tokens = 24 * devices
    mesh = jax.make_mesh((devices,), ("data",), (jax.sharding.AxisType.Auto,))
    experts = make_experts(rng, num_experts, 16, 24, "gelu", True)
    x = jnp.asarray(rng.normal(size=(tokens, 16)), jnp.float32)
    expert = jnp.asarray(rng.integers(num_experts, size=tokens * k))
    weight = jnp.asarray(rng.random(tokens * k), jnp.float32)
    cotangent = jnp.asarray(rng.normal(size=x.shape), jnp.float32)

    def run(backend: str) -> Any:
        def local(x: jax.Array, expert: jax.Array, weight: jax.Array, experts: ExpertWeights):
            token = jnp.repeat(jnp.arange(x.shape[0]), k)
            routing = make_routing(token, expert, weight, x.shape[0], num_experts)
            return dispatch(x, routing, experts, backend=backend)

        if backend != "reference":
            split = PartitionSpec("data")
            specs = (split, split, split, PartitionSpec())
            local = jax.shard_map(
                local, mesh=mesh, in_specs=specs, out_specs=split, check_vma=check_vma
            )

        def loss(x: jax.Array, weight: jax.Array, experts: ExpertWeights) -> jax.Array:
            return jnp.sum(local(x, expert, weight, experts) * cotangent)

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(x, weight, experts)

    assert_close(run(backend), run("reference"), 1e-5)


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
