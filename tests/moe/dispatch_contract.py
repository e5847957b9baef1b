"""What every back end of dispatch, and every bank of experts, must do: a class to inherit.

A back end's test class sets `backend`; a bank's sets `bank`, which makes it from plain weights.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dit_moe.moe.dispatch import dispatch
from dit_moe.moe.experts.bank import ExpertBank
from dit_moe.moe.routing import Routing
from dit_moe.nn.feed_forward import ExpertWeights


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


class DispatchContract:
    """Inherited by the test class of each back end and bank."""

    backend: ClassVar[str]
    trainable: ClassVar[bool] = True
    """Whether gradients of the weights are there."""

    def bank(self, experts: ExpertWeights) -> ExpertBank:
        """The bank under test, with these experts."""
        return experts

    def kept(self, experts: ExpertWeights) -> ExpertWeights:
        """What the bank under test keeps of these experts, which it may round."""
        return experts

    @pytest.mark.parametrize(
        ("case", "activation", "bias"),
        [(case, "swiglu", False) for case in CASES]
        + [(case, "gelu", True) for case in CASES if CASES[case] == CASES["balanced"]],
    )
    def test_value_and_gradient(self, case: str, activation: str, bias: bool) -> None:
        """As one assignment after another in float64, and as the reference's gradient."""
        rng = np.random.default_rng(0)
        routing, tokens, num_experts = routing_of(case, rng)
        experts = make_experts(rng, num_experts, 16, 24, activation, bias)
        x = jnp.asarray(rng.normal(size=(tokens, 16)), jnp.float32)
        expected = numpy_loop(np.asarray(x), routing, self.kept(experts))
        if not self.trainable:
            y = dispatch(x, routing, self.bank(experts), backend=self.backend)
            return assert_close(y, expected, 1e-5)
        cotangent = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
        y, grads = value_and_grads(x, routing, experts, cotangent, self.backend)
        assert_close(y, expected, 1e-5)
        _, reference = value_and_grads(x, routing, experts, cotangent, "reference")
        assert_close(grads, reference, 1e-5)

    def test_bfloat16_is_near_float32(self) -> None:
        rng = np.random.default_rng(2)
        routing, tokens, num_experts = routing_of("balanced", rng)
        experts = make_experts(rng, num_experts, 16, 24, "swiglu", True)
        x = jnp.asarray(rng.normal(size=(tokens, 16)), jnp.bfloat16)
        wide = x.astype(jnp.float32)
        if not self.trainable:
            y = dispatch(x, routing, self.bank(experts), backend=self.backend)
            assert y.dtype == jnp.bfloat16
            kept = self.kept(experts)
            return assert_close(y, dispatch(wide, routing, kept, backend="reference"), 2e-2)
        cotangent = jnp.asarray(rng.normal(size=x.shape), jnp.bfloat16)
        y, grads = value_and_grads(x, routing, experts, cotangent, self.backend)
        assert y.dtype == grads[0].dtype == jnp.bfloat16
        assert {leaf.dtype for leaf in jax.tree.leaves(grads[1:])} == {jnp.dtype(jnp.float32)}
        expected = value_and_grads(
            wide, routing, experts, cotangent.astype(jnp.float32), "reference"
        )
        assert_close((y, grads), expected, 2e-2)

    def test_inside_a_checkpointed_scan_over_layers(self) -> None:
        if not self.trainable:
            pytest.skip("there is no gradient to keep anything for")
        rng = np.random.default_rng(3)
        routing, tokens, num_experts = routing_of("balanced", rng)
        layers = [make_experts(rng, num_experts, 16, 24, "swiglu", False) for _ in range(3)]
        stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
        x = jnp.asarray(rng.normal(size=(tokens, 16)), jnp.float32)

        def scanned(x: jax.Array, stack: ExpertWeights) -> jax.Array:
            @jax.checkpoint
            def layer(x: jax.Array, experts: ExpertWeights) -> tuple[jax.Array, None]:
                return x + dispatch(x, routing, experts, backend=self.backend), None

            return jnp.sum(jax.lax.scan(layer, x, stack)[0] ** 2)

        def unrolled(x: jax.Array, stack: ExpertWeights) -> jax.Array:
            for i in range(len(layers)):
                experts = jax.tree.map(lambda leaf: leaf[i], stack)  # noqa: B023
                x = x + dispatch(x, routing, experts, backend="reference")
            return jnp.sum(x**2)

        expected = jax.jit(jax.value_and_grad(unrolled, argnums=(0, 1)))(x, stack)
        assert_close(jax.jit(jax.value_and_grad(scanned, argnums=(0, 1)))(x, stack), expected, 1e-5)

    @pytest.mark.parametrize("check_vma", [False, True])
    def test_inside_shard_map_over_tokens(self, check_vma: bool) -> None:
        if not self.trainable or (self.backend == "tokamax" and check_vma):
            pytest.skip("banks other than the plain one are for one device; tokamax tells no axes")
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

        assert_close(run(self.backend), run("reference"), 1e-5)
