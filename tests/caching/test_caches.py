"""Samples with a cache beside a plain loop that keeps every block's outputs in a list."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.caching.forecast import Forecast, differences, series, taylor
from dit_moe.caching.network import CachedNetwork
from dit_moe.caching.ranges import Delta
from dit_moe.caching.schedule import full_evaluations
from dit_moe.caching.watched import decide
from dit_moe.config import ConfigError
from dit_moe.config.caching import (
    DeltaConfig,
    ForaConfig,
    TaylorSeerConfig,
    TeaCacheConfig,
    parse_cache,
)
from dit_moe.models.parameters import functional, init_parameters
from dit_moe.nn.attention import Attention
from dit_moe.plan.flops import image_flops
from dit_moe.plan.partial_flops import partial_flops
from dit_moe.sampling.caches import open_caches, told
from dit_moe.sampling.request import build_request
from dit_moe.sampling.sampler import build_sampler
from tests.caching.plain import Plain
from tests.tiny import DIT_MOE, MOE_PLUS_PLUS, PROMOE, pregated, tiny

STEPS = 7
KEYS = jax.random.split(jax.random.key(2), 3)
LABELS = jnp.array([3, 1, 4], jnp.int32)


def live(config):
    """Parameters none of which is zero."""
    keys = iter(jax.random.split(jax.random.key(1), 999))
    return {
        path: value + 0.3 * jax.random.normal(next(keys), value.shape)
        for path, value in init_parameters(config.model, jax.random.key(0)).items()
    }


def request_of(config, cache=None, solver="euler", **guidance):
    integration = {"solver": solver, "steps": STEPS}
    return build_request(
        config, num_samples=3, integration=integration, guidance=guidance, cache=cache
    )


def draw(config, parameters, request):
    return np.asarray(build_sampler(config, request)(parameters, KEYS, LABELS))


@pytest.mark.parametrize(
    ("config", "cache", "guidance"),
    [
        (tiny(PROMOE), "fora:every=3", {"scale": 2.0}),
        (tiny(MOE_PLUS_PLUS), "taylorseer:every=2,order=2", {"scale": 2.0, "interval": (0.0, 0.5)}),
        (tiny(MOE_PLUS_PLUS), "delta:every=2,share=0.5,switch=0.4", {"scale": 2.0}),
        (tiny(DIT_MOE), TeaCacheConfig(threshold=0.3, coefficients=(0.5, -2.0, 1.0, 0.0)), {}),
        (tiny(DIT_MOE), "first_block:threshold=0.4", {}),
        (pregated(DIT_MOE), "taylorseer:every=3", {"scale": 2.0}),
        (pregated(DIT_MOE), "delta:every=2,share=0.5,switch=0.4", {}),
    ],
)
def test_samples_are_those_of_a_plain_loop(config, cache, guidance):
    parameters, request = live(config), request_of(config, cache, **guidance)
    plain = Plain(config, parameters)
    expected = plain.draw(KEYS, LABELS, request)
    actual = draw(config, parameters, request)
    counted = plain.counted
    assert counted is None or 2 < counted < STEPS  # the threshold is reached, but not always
    whole = plain.draw(KEYS, LABELS, request_of(config, **guidance))
    error, change = (np.abs(x - expected).max() for x in (actual, whole))
    assert error < 1e-2 * change, (error, change)


def test_what_is_left_out_is_not_computed(monkeypatch):
    """As attention counts its calls; the last evaluation of heun's eight steps is Euler's alone."""
    original, calls = Attention.__call__, []

    def counted(self, x_NxSxD, angles=None):
        jax.debug.callback(lambda: calls.append(len(x_NxSxD)))
        return original(self, x_NxSxD, angles)

    monkeypatch.setattr(Attention, "__call__", counted)
    config = tiny(DIT_MOE)
    request = request_of(config, "taylorseer:every=4", "heun", scale=2.0, interval=(0.0, 0.5))
    caches = open_caches(config, request)
    draw(config, live(config), request)
    jax.effects_barrier()
    full_E, rows_E = caches.own.method.schedule.full, caches.own.rows
    assert sorted(calls) == sorted(np.repeat(3 * rows_E[full_E], config.model.depth))
    computed = told(caches)["computed"]
    assert computed["evaluations"] == len(rows_E) == 2 * STEPS
    assert computed["full_evaluations"] == full_E.sum() < len(full_E) / 2
    flops, width = image_flops(config.model), config.model.width
    blocks = flops.total - flops.embedding - flops.output - 4 * width**2
    gates = 2 * 6 * width**2 * config.model.depth
    left_out = rows_E[~full_E].sum() / rows_E.sum() * (blocks - gates) / flops.total
    assert computed["share_of_flops"] == pytest.approx(1 - left_out)


def test_a_router_before_the_trunk_decides_at_every_evaluation():
    """Its operations are no unit's: they are counted where all units are left out, too."""
    model = pregated(DIT_MOE).model
    flops = image_flops(model)
    all_and_none = np.array([[True] * model.units, [False] * model.units])
    whole, least = partial_flops(model, all_and_none, gates=False)
    assert whole == flops.total
    assert least == flops.embedding + flops.output + 4 * model.width**2 + flops.pregate


@pytest.mark.parametrize(
    "cache", ["fora:every=1", "taylorseer:every=1,order=3", "teacache:threshold=0"]
)
def test_the_identity_is_the_program_without_a_cache(cache):
    config = tiny(DIT_MOE)
    inputs = live(config), KEYS, LABELS
    texts = [
        build_sampler(config, request_of(config, given, scale=2.0)).lower(*inputs).as_text()
        for given in (cache, None)
    ]
    assert texts[0] == texts[1]
    assert told(open_caches(config, request_of(config, cache))) == {}


def test_a_cache_that_computes_everything_changes_no_bit():
    """The way that a cache takes, where nothing is left out."""
    config = tiny(DIT_MOE)
    method = Forecast(TaylorSeerConfig(every=1, order=1), np.full(3, 2), config.model.units)
    model = functional(config.model)(live(config))

    @jax.jit
    def run(x):
        cached = CachedNetwork(model, method, 2 * len(x), config.model.image_shape)
        inputs = jnp.concatenate([x, x]), jnp.full(6, 0.3), jnp.arange(6)
        return [network(*inputs).value for network in (cached, cached, model)]

    first, second, plain = run(jax.random.normal(jax.random.key(0), (3, 8, 8, 1)))
    np.testing.assert_array_equal(first, plain)
    np.testing.assert_array_equal(second, plain)


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("every", [1, 2, 3, 5, 60])
def test_the_number_of_full_evaluations(steps, every):
    rows_E = np.ones(steps, int)
    fora = full_evaluations(ForaConfig(every=every), rows_E)
    assert fora.sum() == math.ceil(steps / every) + ((steps - 1) % every != 0)
    taylor = full_evaluations(TaylorSeerConfig(every=every), rows_E)
    assert taylor.sum() == (steps if steps < 2 else 2 + (steps - 2) // every)


def test_published_numbers_of_full_evaluations():
    """FORA: 190 and 132 of 366 TMAC in 50 steps."""
    full = [full_evaluations(ForaConfig(every=n), np.ones(50, int)).sum() for n in (2, 3)]
    assert full == [26, 18]


def test_rows_of_which_nothing_is_known_are_computed():
    rows_E = np.array([2, 1, 1, 1, 1, 2, 2, 2])
    full_E = full_evaluations(ForaConfig(every=3), rows_E)
    assert full_E.tolist() == [True, False, False, True, False, True, False, True]
    factor_ExO, _ = series(full_E, rows_E, 2)
    assert factor_ExO[4].tolist() == [1, 1, 0]  # two are known
    assert factor_ExO[6].tolist() == [1, 0, 0]  # a new series


@pytest.mark.parametrize(("order", "power"), [(0, 0), (1, 1), (2, 1), (3, 1), (1, 2), (2, 2)])
def test_the_series_of_powers(order, power):
    """Linear features are exact; of squares, nested differences err by h x + x^2 or h x."""
    every, steps = 3, 20
    rows_E = np.ones(steps, int)
    full_E = full_evaluations(TaylorSeerConfig(every=every, order=order), rows_E)
    factor_ExO, distance_E = series(full_E, rows_E, order)
    terms, last = (jnp.zeros(()),) * (order + 1), 0
    for number in range(steps):
        value = float(number) ** power
        if full_E[number]:
            terms, last = differences(jnp.asarray(value), terms, distance_E[number]), number
        elif number > 2 + every * (order + 1):
            ahead = number - last
            error = {0: 0, 1: 0, 2: every * ahead + (ahead**2 if order == 1 else 0)}[power]
            found = float(taylor(terms, jnp.asarray(factor_ExO[number])))
            assert found == pytest.approx(value - error, rel=1e-5)


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        ("forra", "step_cache is 'forra'; allowed: fora, taylorseer, delta, teacache, first_block"),
        ("fora:often=2", "'often=2' is no field of 'fora'; allowed: every=VALUE"),
        ("fora:every", "'every' is no field of 'fora'; allowed: every=VALUE"),
        ("fora:every=0", "step_cache.every is '0'; input should be greater than 0"),
        ("fora:every=2,every=3", "with a field twice; allowed: each once"),
        ("taylorseer:order=5", "step_cache.order is '5'; input should be less than or equal to 4"),
    ],
)
def test_what_names_no_cache(cache, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_cache(cache)


def test_delta_leaves_out_the_last_units_then_the_first():
    settings = DeltaConfig(every=3, share=0.5, switch=0.5)
    table = Delta(settings, np.ones(8, int), 4).schedule.computed
    assert table.sum(axis=1).tolist() == [4, 2, 2, 4, 2, 2, 4, 2]
    assert table[1].tolist() == table[5].tolist() == [True, True, False, False]
    assert table[7].tolist() == [False, False, True, True]  # from the first computed after half
    costs = partial_flops(tiny(DIT_MOE).model, table[:, 1:3], gates=False)
    assert costs[1] < costs[0] == image_flops(tiny(DIT_MOE).model).total


@pytest.mark.parametrize("threshold", [0.1, 0.25, 0.4])
def test_teacache_of_a_constant_sign(threshold):
    """Each evaluation adds the polynomial of 0; a negative one adds nothing."""
    settings = TeaCacheConfig(threshold=threshold, coefficients=(1.0, 0.1))
    full, total = [], 0.0
    for _ in range(12):
        due, total = decide(settings, total, 0.0, False)
        full.append(bool(due))
    period = math.ceil(threshold / 0.1 - 1e-6)
    assert np.flatnonzero(full).tolist() == list(range(period - 1, 12, period))
    negative = TeaCacheConfig(threshold=threshold, coefficients=(1.0, -0.1))
    assert decide(negative, 0.05, 0.0, False)[1] == np.float32(0.05)
    assert decide(negative, 0.05, 0.0, True)[0]


def test_what_does_not_fit_the_network():
    config = tiny(DIT_MOE)
    with pytest.raises(
        ConfigError, match=r"'teacache' without its calibration; allowed: after `py"
    ):
        open_caches(config, request_of(config, "teacache"))
    shallow = dataclasses.replace(config, model=dataclasses.replace(config.model, depth=1))
    with pytest.raises(ConfigError, match=r"'first_block' with a network of 1 unit; allowed: 2"):
        open_caches(shallow, request_of(shallow, "first_block"))
    request = request_of(config, "first_block", guide="self_contrast", scale=1.5)
    with pytest.raises(ConfigError, match=r"'first_block' with guidance 'self_contrast', whose"):
        open_caches(config, request)
    with pytest.raises(ConfigError, match=r"every is 9 with 7 evaluations; allowed: 1 to 7"):
        open_caches(config, request_of(config, "delta:every=9"))


def test_what_does_not_fit_the_steps():
    config = tiny(DIT_MOE)
    with pytest.raises(ConfigError, match=r"'fora' with solver 'dopri5', whose steps depend on"):
        request_of(config, "fora", "dopri5")
    request = request_of(config, "taylorseer:every=5,order=3")
    with pytest.raises(ConfigError, match=r"order is 3, which needs 4 .* there are 3; allowed: 0"):
        open_caches(config, request)
    with pytest.raises(ConfigError, match=r"every is 8 with 7 evaluations; allowed: 1 to 7"):
        open_caches(config, request_of(config, "fora:every=8"))
