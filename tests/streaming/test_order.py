"""What is asked of a store while only a part of the network is computed, and what is read of it."""

import dataclasses
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.config.caching import TeaCacheConfig
from dit_moe.runs.loading import load_run
from dit_moe.sampling.asked import experts_asked
from dit_moe.sampling.caches import open_caches
from dit_moe.sampling.request import build_request
from dit_moe.sampling.sampler import build_sampler, image_keys
from dit_moe.streaming.bank import streamed
from dit_moe.streaming.layout import FORMAT, Store, layers_of
from dit_moe.streaming.making import make_store
from dit_moe.streaming.opening import open_store
from dit_moe.streaming.ring import all_blocks, least_bytes
from tests.streaming.stores import write_model
from tests.tiny import DIT_MOE, PROMOE, PROMOE_EC, UNLIKE, tiny

IMAGES, STEPS = 3, 5


def deep(moe):
    config = tiny(moe)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, depth=8))


def request_of(config, cache=None, solver="euler", **guidance):
    integration = {"solver": solver, "steps": STEPS}
    return build_request(
        config, num_samples=IMAGES, integration=integration, guidance=guidance, cache=cache
    )


def draw(sampler, parameters):
    key_N, y_N = image_keys(0, np.arange(IMAGES)), jnp.arange(IMAGES, dtype=jnp.int32)
    return np.asarray(sampler(parameters, key_N, y_N))


@pytest.mark.parametrize(
    ("moe", "cache", "guidance"),
    [
        (PROMOE, "fora:every=3", {"scale": 2.0, "interval": (0.0, 0.5)}),
        (DIT_MOE, "delta:every=2,share=0.5,switch=0.4", {"scale": 2.0}),
        (DIT_MOE, TeaCacheConfig(threshold=0.3, coefficients=(0.5, -2.0, 1.0, 0.0)), {}),
    ],
    ids=["fora", "delta", "teacache"],
)
def test_what_is_not_computed_is_not_read(moe, cache, guidance, tmp_path):
    """Bit-equal whatever is in memory, and no byte more than the computed layers have."""
    config = deep(moe)
    write_model(tmp_path / "model", config)
    make_store(tmp_path / "model", tmp_path / "store", ema=False)
    request = request_of(config, cache, **guidance)
    caches = open_caches(config, request)
    assert caches is not None
    opened = open_store(tmp_path / "store", config.model, ema=False)
    sampler = build_sampler(config, request, network=lambda model: streamed(model, opened.source))
    order = experts_asked(opened.store, config, request, caches).order
    layers, units = opened.store.layers, config.model.units
    opened.fill(opened.store.bytes, order=order).close()
    whole = draw(sampler, opened.rest)
    run = load_run(tmp_path / "model", ema=False).parameters
    # Around what it does not compute, XLA may round other programs otherwise.
    np.testing.assert_allclose(whole, draw(build_sampler(config, request), run), atol=2e-6)
    least = least_bytes(opened.store)
    for budget in (least, least + 2 * layers[0].bytes):
        ring = opened.fill(budget, order=order)
        np.testing.assert_array_equal(draw(sampler, opened.rest), whole)
        settle(ring)
        before = ring.bytes_read
        draw(sampler, opened.rest)
        settle(ring)
        read, pinned = ring.bytes_read - before, {layer for layer, _ in ring._pinned}
        if caches.own.method.schedule is None:
            assert read % ring.streamed_bytes == 0
            assert 0 < read < STEPS * ring.streamed_bytes
        else:
            expected = 0
            for computed_U, rows in zip(
                caches.own.method.schedule.computed, caches.own.rows, strict=True
            ):
                assert len(computed_U) == units == len(layers)
                for number, layer in enumerate(layers):
                    if computed_U[number] and number not in pinned:
                        unconditional = moe.unconditional_expert and rows == 1
                        expected += (layer.experts - unconditional) * layer.block
            assert read == expected
        ring.close()


def settle(ring):
    while len(ring._loaded) + len(ring._used) < ring._slots:
        threading.Event().wait(0.001)


def asked(config, request):
    layers = layers_of(config.model, "float32")
    store = Store(FORMAT, 0, "float32", "", layers)
    return store, experts_asked(store, config, request, open_caches(config, request))


@pytest.mark.parametrize("moe", [PROMOE, PROMOE_EC])
def test_the_unconditional_expert_is_asked_for_where_images_have_no_class(moe):
    config = deep(moe)
    store, (order, each) = asked(config, request_of(config, scale=1.0))
    assert order == [block for block in all_blocks(store) if block[1] != moe.num_experts]
    assert each == "pass of the network"
    store, (order, each) = asked(config, request_of(config, scale=2.0))
    assert (order, each) == (all_blocks(store), "pass of the network")
    store, (order, each) = asked(config, request_of(config, scale=2.0, interval=(0.0, 0.5)))
    assert each == "batch"
    # Of the times 1, 0.8, 0.6, 0.4 and 0.2 two are within.
    number = len(all_blocks(store))
    assert len(order) == STEPS * number - 3 * len(store.layers)
    _, (order, each) = asked(config, request_of(config, "fora:every=3", scale=1.0))
    assert len(order) == number - len(store.layers)


def test_what_asks_at_unknown_times_is_taken_to_ask_for_everything():
    config = deep(DIT_MOE)
    for cache, solver, guidance in (
        ("first_block", "euler", {}),
        ("delta:every=2", "euler", {"guide": "self_contrast", "scale": 2.0}),
        (None, "dopri5", {"scale": 2.0, "interval": (0.0, 0.5)}),
    ):
        store, (order, each) = asked(config, request_of(config, cache, solver, **guidance))
        assert (order, each) == (all_blocks(store), "pass of the network")


def test_experts_of_several_kinds_are_of_one_unit():
    config = deep(UNLIKE)
    store, (order, each) = asked(config, request_of(config, "delta:every=2,share=0.5,switch=1"))
    assert each == "batch"
    first = [layer for layer, _ in order[len(all_blocks(store)) :]]
    assert {store.layers[layer].unit for layer in first[: len(all_blocks(store)) // 2]} == {
        *range(4)
    }
    assert order[: len(all_blocks(store))] == all_blocks(store)
