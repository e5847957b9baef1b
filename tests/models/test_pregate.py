"""One router before the trunk for all MoE layers: its decisions, its price, its state."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.analysis.decisions import watched
from dit_moe.config import (
    ConfigError,
    ModelConfig,
    PregateConfig,
    SegmentConfig,
    TopKRouterConfig,
)
from dit_moe.config.files import load_file
from dit_moe.convert.constructors import constructor_arguments
from dit_moe.models.parameters import abstract_parameters, functional, init_parameters
from dit_moe.plan.flops import image_flops
from dit_moe.surgery import aggregate, upcycle
from dit_moe.surgery.compress.experts import check_mixtures
from dit_moe.surgery.permutation import check_order_free
from tests.test_plan import forward, inputs, traced_flops
from tests.tiny import DIT_MOE, EC_DIT, HECTO, PREGATED, pregated, tiny
from tests.training.test_training import batch, one_device, run_steps

MODEL = pregated(PREGATED).model


@pytest.fixture(scope="module")
def parameters():
    found = jax.jit(lambda key: init_parameters(MODEL, key))(jax.random.key(0))
    # adaLN-zero shuts all layers at first.
    shut = [path for path in found if "modulation." in path or "patch_out." in path]
    noise = {
        p: 0.1 * jax.random.normal(jax.random.key(i), found[p].shape) for i, p in enumerate(shut)
    }
    return found | {path: found[path] + value for path, value in noise.items()}


def asked(n: int = 3):
    x, y = batch(n)
    return x, jnp.linspace(0.1, 0.9, n), y


def test_every_layer_does_what_is_known_before_the_first_runs(parameters):
    network = functional(MODEL)(parameters)
    known, prediction = jax.jit(lambda *args: (network.decide(*args), network(*args)))(*asked())
    (record,) = prediction.routing
    for name in ("token", "expert", "weight", "scores"):
        for layer in getattr(record, name):
            np.testing.assert_array_equal(layer, getattr(known, name), err_msg=name)
    assert set(np.unique(known.expert)) == {0, 1, 2, 3}
    # No parameter of a layer has a part in it, and the decision has one in the prediction.
    alone = {
        p: v if ".segments." not in p else jnp.full_like(v, jnp.nan) for p, v in parameters.items()
    }
    again = functional(MODEL)(alone).decide(*asked())
    np.testing.assert_array_equal(again.expert, known.expert)
    assert np.isfinite(prediction.value).all()


@pytest.mark.parametrize("what", ["patches", "time", "label"])
def test_it_depends_on(what, parameters):
    """Of other images it does not."""
    network = jax.jit(functional(MODEL)(parameters).decide)
    x, t, y = asked()
    before = network(x, t, y).scores.reshape(3, -1)
    changed = {
        "patches": (x.at[0].add(1), t, y),
        "time": (x, t.at[0].add(0.5), y),
        "label": (x, t, y.at[0].set(MODEL.null_label)),
    }[what]
    after = network(*changed).scores.reshape(3, -1)
    assert np.abs(after - before)[0].max() > 1e-6
    np.testing.assert_array_equal(after[1:], before[1:])


def test_its_losses_and_state_count_once():
    """A bias that follows the load moves once, and the balance loss is that of one router."""
    settings = TopKRouterConfig(bias="sign", bias_rate=0.5, balance_coef=0.25)
    config = pregated(dataclasses.replace(DIT_MOE, router=settings))
    state, metrics = run_steps(config, one_device(), steps=1)
    bias_E = state.parameters["trunk.pregate.router.bias"]
    assert bias_E.shape == (4,)
    assert set(np.unique(np.abs(bias_E))) <= {0.0, 0.5}
    assert np.abs(bias_E).max() == 0.5
    np.testing.assert_array_equal(state.ema["trunk.pregate.router.bias"], bias_E)
    assert not any("feed_forward.router" in path for path in state.parameters)
    # Of an even load the loss is its coefficient; of two layers it would be twice that.
    assert metrics["balance"] == pytest.approx(0.25, rel=0.3)
    load = metrics["moe/load"][0]
    np.testing.assert_array_equal(load[0], load[1])


def test_what_it_costs(monkeypatch):
    """Parameters by hand, FLOPs as XLA counts them, less than the layers' own routers."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")  # experts by ragged products
    model = load_file("configs/digits.py:pre-gated").model
    own, d = model.before, model.width
    assert own is not None
    w, e = own.width, model.mixtures[0].num_experts
    counted = {path: p.size for path, p in abstract_parameters(model).items()}
    block = 4 * w * (w + 1) + 6 * w * (w + 1) + 2 * w * w + 2 * w  # attention, adaLN, feed-forward
    expected = 2 * (d + 1) * w + block + 2 * w * (w + 1) + w * e
    assert sum(n for path, n in counted.items() if path.startswith("trunk.pregate.")) == expected
    traced = traced_flops(jax.make_jaxpr(forward(model, train=True))(*inputs(model, 1)).jaxpr)
    assert image_flops(model).total == pytest.approx(traced, rel=1e-9)
    assert image_flops(model).router == 0


def test_by_image():
    model = pregated(dataclasses.replace(HECTO, every=1)).model
    network = functional(model)(init_parameters(model, jax.random.key(1)))
    expert_NxS = network.decide(*asked()).expert.reshape(3, -1)
    assert (expert_NxS == expert_NxS[:, :1]).all()


def test_the_analysis_sees_the_tokens_of_every_layer(parameters):
    prediction = watched(MODEL, parameters)(*asked())
    mean_LxNxD = prediction.routing[0].metrics["mean_token"]
    assert mean_LxNxD.shape == (2, 3, MODEL.width)
    assert np.abs(mean_LxNxD[0] - mean_LxNxD[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"moe": None}, "pregate has a router for 0 kinds of mixtures"),
        ({"moe": EC_DIT}, "pregate has router 'expert_choice'"),
        ({"pregate": PregateConfig(heads=1, mlp_ratio=0.3)}, "pregate.mlp_ratio is 0.3"),
        (
            {"moe": None, "segments": (SegmentConfig(1, DIT_MOE), SegmentConfig(1, PREGATED))},
            "pregate has a router for 2 kinds of mixtures",
        ),
        ({"width": 12, "heads": 6, "pregate": PregateConfig(heads=3)}, "pregate.heads is 3"),
    ],
)
def test_refusals(fields, message):
    values = {"width": 16, "depth": 2, "heads": 2, "moe": PREGATED, "pregate": PregateConfig()}
    with pytest.raises(Exception, match=message.replace(".", r"\.")) as error:
        ModelConfig(**(values | fields))
    assert "allowed: " in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda config: aggregate.check(config, config),
        lambda config: upcycle.check(tiny(None), config),
        lambda config: check_mixtures(config.model),
        lambda config: check_order_free(config.model),
        lambda config: constructor_arguments("dit-moe", config.model, config.objective),
    ],
)
def test_what_changes_routers_of_layers_refuses_it(change):
    with pytest.raises(ConfigError, match=r"pregate is (a|'a) router before the trunk"):
        change(pregated(PREGATED))


def test_layers_with_routers_know_nothing_before_they_run():
    model = tiny(DIT_MOE).model
    network = functional(model)(init_parameters(model, jax.random.key(1)))
    with pytest.raises(ConfigError, match=r"model\.pregate is none"):
        network.decide(*asked())
