"""The bank of packed experts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.moe.dispatch import dispatch
from dit_moe.nn.feed_forward import ExpertWeights, PackedExperts
from dit_moe.nn.packed import Packed, packed_bytes, range_grid
from dit_moe.nn.packed_parts import PackedParts
from tests.moe.dispatch_contract import DispatchContract, make_experts, routing_of

BITS, GROUP = 4, 5


def rounded(w_ExDxG: jax.Array) -> jax.Array:
    """To the nearest of what four bits can hold, group by group, in NumPy."""
    w, found = np.asarray(w_ExDxG), np.empty(w_ExDxG.shape, np.float32)
    for first in range(0, w.shape[1], GROUP):
        own = w[:, first : first + GROUP]
        least, most = np.minimum(own.min(1), 0), np.maximum(own.max(1), 0)
        exact = (most - least) / (2**BITS - 1)
        scale = exact.astype(np.float16)
        scale = np.where(scale < exact, np.nextafter(scale, np.float16(np.inf)), scale)
        scale = scale.astype(np.float32)[:, None]
        zero = np.round(-least[:, None] / scale)
        codes = np.clip(np.round(own / scale + zero), 0, 2**BITS - 1)
        found[:, first : first + GROUP] = (codes - zero) * scale
    return jnp.asarray(found)


@jax.jit
def packed(w_ExDxG: jax.Array) -> Packed:
    return Packed.of(w_ExDxG, range_grid(w_ExDxG, BITS, GROUP), BITS, GROUP)


class OfPacked(DispatchContract):
    trainable = False

    def bank(self, experts: ExpertWeights) -> PackedExperts:
        return PackedExperts(
            packed(experts.w_in),
            packed(experts.w_out),
            experts.b_in,
            experts.b_out,
            experts.activation,
        )

    def kept(self, experts: ExpertWeights) -> ExpertWeights:
        return dataclasses.replace(
            experts, w_in=rounded(experts.w_in), w_out=rounded(experts.w_out)
        )


class TestPackedWithReference(OfPacked):
    backend = "reference"


class TestPackedWithBlocked(OfPacked):
    backend = "blocked"


class TestPackedWithRagged(OfPacked):
    backend = "ragged"


def in_parts(w_ExDxG: jax.Array, bits_E: list[int]) -> PackedParts:
    """The experts with these bits."""
    members = [np.flatnonzero(np.array(bits_E) == bits) for bits in sorted({*bits_E}, reverse=True)]
    grids = [
        (w_ExDxG[own], range_grid(w_ExDxG[own], bits_E[own[0]], GROUP), bits_E[own[0]])
        for own in members
    ]
    return PackedParts.of([Packed.of(w, grid, bits, GROUP) for w, grid, bits in grids], members)


@pytest.mark.parametrize("backend", ["blocked", "reference", "ragged"])
def test_experts_may_have_unlike_bits(backend):
    """Each is computed with its own, wherever it lies."""
    rng = np.random.default_rng(3)
    routing, tokens, number = routing_of("balanced", rng)
    experts = make_experts(rng, number, 16, 24, "gelu", True)
    bits_E = [int(bits) for bits in rng.permutation([2, 3, 7] * number)[:number]]
    alone = [
        Packed.of(own, range_grid(own, bits, GROUP), bits, GROUP).weights()
        for own, bits in zip(experts.w_in, bits_E, strict=True)
    ]
    parts = in_parts(experts.w_in, bits_E)
    assert len(parts.parts) > 1
    np.testing.assert_array_equal(parts.weights(), jnp.stack(alone))
    bank = dataclasses.replace(OfPacked().bank(experts), w_in=parts)
    kept = dataclasses.replace(experts, w_in=jnp.stack(alone), w_out=rounded(experts.w_out))
    x = jnp.asarray(rng.normal(size=(tokens, 16)), jnp.float32)
    found = jax.jit(lambda x: dispatch(x, routing, bank, backend=backend))(x)
    np.testing.assert_allclose(found, dispatch(x, routing, kept), rtol=1e-5, atol=1e-5)


def test_one_matrix_may_be_whole():
    rng = np.random.default_rng(0)
    routing, tokens, number = routing_of("balanced", rng)
    experts = make_experts(rng, number, 16, 24, "swiglu", False)
    x = jnp.asarray(rng.normal(size=(tokens, 16)), jnp.float32)
    bank = PackedExperts(packed(experts.w_in), experts.w_out)
    kept = dataclasses.replace(experts, w_in=rounded(experts.w_in))
    np.testing.assert_allclose(
        dispatch(x, routing, bank), dispatch(x, routing, kept), rtol=1e-5, atol=1e-5
    )


def test_no_gradient_of_what_is_packed():
    rng = np.random.default_rng(1)
    routing, tokens, number = routing_of("balanced", rng)
    bank = OfPacked().bank(make_experts(rng, number, 16, 24, "swiglu", False))
    x = jnp.asarray(rng.normal(size=(tokens, 16)), jnp.float32)
    with pytest.raises(TypeError, match="PackedExperts is a bank of experts that cannot be"):
        jax.grad(lambda x: dispatch(x, routing, bank, backend="blocked").sum())(x)


@pytest.mark.parametrize("unlike", [False, True], ids=["like", "unlike"])
@pytest.mark.parametrize("backend", ["blocked", "reference"])
def test_one_expert_is_whole_at_a_time(backend, unlike):
    """What the program holds beside its arguments is that of one expert, however many there are;
    the arguments are of the packed size."""
    width, hidden, tokens = 128, 512, 8
    whole = 4 * width * 3 * hidden

    def bytes_of(number: int) -> tuple[int, int]:
        rng = np.random.default_rng(2)
        experts = make_experts(rng, number, width, hidden, "swiglu", False)
        token, expert = jnp.arange(tokens), jnp.arange(tokens) % number
        routing, _, _ = routing_of("a single token", rng)
        routing = dataclasses.replace(routing, token=token, expert=expert, weight=jnp.ones(tokens))
        bank, matrices = OfPacked().bank(experts), (experts.w_in, experts.w_out)
        bits_E = [2, BITS] * (number // 2) if unlike else [BITS] * number
        if unlike:
            w_in, w_out = (in_parts(w, bits_E) for w in matrices)
            bank = dataclasses.replace(bank, w_in=w_in, w_out=w_out)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(bank))
        assert size == 2 * 4 * number * unlike + sum(
            packed_bytes(w.shape[1:], bits, GROUP) for w in matrices for bits in bits_E
        )

        @jax.jit
        def run(x: jax.Array, bank: PackedExperts) -> jax.Array:
            return dispatch(x, routing, bank, backend=backend)

        memory = run.lower(jnp.ones((tokens, width)), bank).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes, memory.argument_size_in_bytes

    few, _ = bytes_of(2)
    many, arguments = bytes_of(8)
    assert many < few + whole // 4  # what grows with the number of experts is small
    assert many < 2.5 * whole
    assert arguments < 8 * whole / 3
