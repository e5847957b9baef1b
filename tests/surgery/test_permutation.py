"""Experts in another order: the same network, to the bit where no sum is of another order."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.config import ConfigError, MixedTopKRouterConfig, SegmentConfig, TopKRouterConfig
from dit_moe.models.parameters import functional, init_parameters
from dit_moe.surgery.permutation import permuted
from tests.tiny import (
    ADAMOE,
    DIFFMOE,
    DIT_MOE,
    EC_DIT,
    HECTO,
    MOE_PLUS_PLUS,
    PROMOE,
    PYRAMID,
    SOFT_MOE,
    tiny,
)

EIGHT = dataclasses.replace(DIT_MOE, num_experts=8)
# 16 experts of width 16: an axis of experts is told apart from one of the width.
AS_WIDE = dataclasses.replace(DIT_MOE, num_experts=16)
BIASED = dataclasses.replace(EIGHT, router=TopKRouterConfig(bias="sign", gate="sigmoid"))


def drawn(moe, seed: int = 0):
    """A network with parameters that are none of them alike, zeros of the start included, and an
    order for each of its layers."""
    network = tiny(moe).model
    rng = np.random.default_rng(seed)
    parameters = {
        path: np.asarray(value) + rng.normal(0, 0.1, value.shape).astype(np.float32)
        for path, value in init_parameters(network, jax.random.key(seed)).items()
    }
    orders = [rng.permutation(mixture.num_experts) for mixture in network.mixtures]
    return network, parameters, orders


def output(network, parameters) -> np.ndarray:
    """Of images with labels, and of some with none."""
    x = jax.random.normal(jax.random.key(1), (8, 8, 8, 1))
    t, y = jnp.linspace(0.1, 0.9, 8), jnp.array([0, 1, 2, 10, 4, 10, 6, 7])
    run = jax.jit(lambda p: functional(network)(p)(x, t, y).value)
    return np.asarray(run(jax.tree.map(jnp.asarray, parameters)))


def softmax_without_order(logits: jax.Array, axis: int = -1) -> jax.Array:
    """A softmax whose sum goes from the least to the largest, whichever has which."""
    exp = jnp.exp(logits - logits.max(axis=axis, keepdims=True))
    return exp / jnp.sort(exp, axis=axis).sum(axis=axis, keepdims=True)


@pytest.mark.parametrize("moe", [EIGHT, AS_WIDE, PROMOE, BIASED])
def test_outputs_are_the_same_to_the_bit(moe, monkeypatch):
    monkeypatch.setattr(jax.nn, "softmax", softmax_without_order)
    network, parameters, orders = drawn(moe)
    moved = permuted(network, parameters, orders)
    assert any((order != np.sort(order)).any() for order in orders)
    np.testing.assert_array_equal(output(network, moved), output(network, parameters))
    # The router's rows alone would not do, nor the experts alone.
    for part in ("router.", "experts."):
        half = {path: moved[path] if part in path else p for path, p in parameters.items()}
        assert np.abs(output(network, half) - output(network, parameters)).max() > 1e-4


@pytest.mark.parametrize("moe", [EIGHT, ADAMOE, EC_DIT, DIFFMOE, PYRAMID])
def test_outputs_are_the_same_but_for_the_order_of_sums(moe):
    network, parameters, orders = drawn(moe)
    moved = permuted(network, parameters, orders)
    np.testing.assert_allclose(
        output(network, moved), output(network, parameters), rtol=0, atol=1e-5
    )


def test_places_and_what_stays():
    network, parameters, (order,) = drawn(PROMOE)
    moved = permuted(network, parameters, [order])
    mixture = "trunk.segments.0.blocks.1.feed_forward."
    for name in ("experts.w_in", "experts.b_out"):
        before, after = parameters[mixture + name][0], moved[mixture + name][0]
        np.testing.assert_array_equal(after[:4], before[order])
        np.testing.assert_array_equal(after[4], before[4])  # the unconditional one
    rows = mixture + "router.prototypes"
    np.testing.assert_array_equal(moved[rows][0], parameters[rows][0][order])
    changed = {path for path in moved if not np.array_equal(moved[path], parameters[path])}
    assert all(".router." in path or ".experts." in path for path in changed)
    # There and back.
    back = permuted(network, moved, [np.argsort(order)])
    for path, value in parameters.items():
        np.testing.assert_array_equal(back[path], value)


HANDS_ON = dataclasses.replace(MOE_PLUS_PLUS, router=MixedTopKRouterConfig(gating_residual=True))
TWO_LAYERS = dataclasses.replace(
    MOE_PLUS_PLUS, router=MixedTopKRouterConfig(gating_residual=False, scores="two_layers")
)


@pytest.mark.parametrize(
    ("moe", "told"),
    [
        (None, "the model is dense"),
        (SOFT_MOE, "router is 'soft'"),
        (HANDS_ON, "hands its scores on.*gating_residual false"),
        (HECTO, "moe.unlike has bigru"),
        (dataclasses.replace(DIT_MOE, choice="random"), "moe.choice is 'random'"),
        (TWO_LAYERS, "router.kernels.*a router with a row of each"),
    ],
)
def test_mixtures_that_care_for_the_order_are_refused(moe, told):
    network, parameters, orders = drawn(moe)
    with pytest.raises(ConfigError, match=told):
        permuted(network, parameters, orders)


def test_a_pyramid_has_an_order_of_its_own_for_each_layer():
    network, parameters, orders = drawn(PYRAMID)
    assert [len(order) for order in orders] == [2, 4]
    assert isinstance(PYRAMID[0], SegmentConfig)
    moved = permuted(network, parameters, orders)
    for number, order in enumerate(orders):
        path = f"trunk.segments.{number}.blocks.0.feed_forward.experts.w_in"
        np.testing.assert_array_equal(moved[path][0], parameters[path][0][order])
