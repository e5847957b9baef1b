"""Quantised models: what they lose, what they take, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.commands import compress as command
from dit_moe.commands import sample
from dit_moe.config import ConfigError
from dit_moe.models.parameters import Place, functional, places
from dit_moe.models.unpacking import packed_kinds, packed_matrices, unpacked
from dit_moe.nn.modulation import modulate
from dit_moe.nn.packed import packed_bytes
from dit_moe.surgery.compress.bits import bits_of
from dit_moe.surgery.compress.calibration import Calibration, CalibrationSettings
from dit_moe.surgery.compress.chain import read_model
from dit_moe.surgery.compress.correlations import Seen, Walk
from dit_moe.surgery.compress.drop import DropSettings
from dit_moe.surgery.compress.methods import chosen_steps
from dit_moe.surgery.compress.quantise import QuantiseSettings, quantise
from dit_moe.surgery.compress.record import read_compressed, size_of
from dit_moe.surgery.compress.rounding import nearest
from dit_moe.surgery.compress.steps import Model, apply_step
from tests.analysis.fresh_run import write_fresh_run
from tests.models.test_packing import random_parameters
from tests.tiny import DIT_MOE, PROMOE, SOFT_MOE, UNLIKE, tiny


def model_of(moe) -> Model:
    config = tiny(moe)
    return Model(config, jax.device_get(random_parameters(config.model)), ema=False, step=0)


def calibration(model: Model, seed: int = 0) -> Calibration:
    """Smooth pictures, at four times."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(-1, 1, 8)
    x = rng.normal(size=(16, 1, 1)) * ramp[:, None] + rng.normal(size=(16, 1, 1)) * ramp
    return Calibration(
        model.config.objective,
        x[..., None].astype(np.float32),
        rng.integers(0, 10, 16),
        model.config.model.null_label,
        CalibrationSettings(images=16, times=4, batch_size=16),
    )


@pytest.fixture(scope="module")
def promoe() -> Model:
    return model_of(PROMOE)


def changed(model: Model, quantised: Model) -> float:
    """Relative error of what the network predicts for inputs of another calibration."""
    network, parameters = unpacked(
        quantised.config.model, {k: jnp.asarray(v) for k, v in quantised.parameters.items()}
    )
    assert network == model.config.model

    @jax.jit
    def run(parameters, inputs):
        return functional(network)(parameters)(inputs.x, inputs.t, inputs.y).value

    original = jax.device_put(dict(model.parameters))
    error, size = 0.0, 0.0
    for inputs in calibration(model, seed=1).batches():
        inputs = inputs._replace(time=0, place=0.0)
        before, after = run(original, inputs), run(parameters, inputs)
        error += float(jnp.square(before - after).sum())
        size += float(jnp.square(before).sum())
    return error / size


@pytest.mark.parametrize("moe", [PROMOE, DIT_MOE], ids=["promoe", "dit-moe"])
def test_gptq_is_ahead_of_round_to_nearest(moe):
    """At 3 and 4 bits; and 8 bits change next to nothing."""
    model = model_of(moe)
    shown = calibration(model)
    for bits in (3, 4):
        plain, ours = (
            changed(
                model,
                quantise(model, QuantiseSettings(bits=bits, method=method, group=16), shown).model,
            )
            for method in ("nearest", "gptq")
        )
        assert ours < 0.7 * plain, bits
    eight = quantise(model, QuantiseSettings(bits=8, method="nearest", group=16), None).model
    assert changed(model, eight) < 1e-3


def test_what_is_packed_and_what_is_not(promoe):
    settings = QuantiseSettings(bits=4, attention=6, shared=5, modulation=8, group=8)
    quantised = quantise(promoe, settings, None)
    network = quantised.model.config.model
    prefix = "trunk.segments.0.blocks."
    assert quantised.told["matrices"] == bits_of(promoe.config.model, settings)
    assert {path: kind.bits for path, (kind, _) in packed_kinds(network).items()} == {
        **{f"{prefix}{b}.attention.{m}.kernel": 6 for b in (0, 1) for m in ("qkv", "out")},
        **{f"{prefix}{b}.feed_forward.experts.{m}": 4 for b in (0, 1) for m in ("w_in", "w_out")},
        **{f"{prefix}1.feed_forward.shared.experts.{m}": 5 for m in ("w_in", "w_out")},
        **{f"{prefix}{b}.modulation.kernel": 8 for b in (0, 1)},
        "modulation.kernel": 8,
    }
    weights, bits = 0, 0
    for path, matrix in packed_matrices(
        network, jax.device_put(dict(quantised.model.parameters))
    ).items():
        expected = packed_bytes(matrix.shape, matrix.bits, 8)
        assert sum(p.nbytes for p in jax.tree.leaves(matrix)) == expected, path
        weights += np.prod(matrix.shape)
        bits += np.prod(matrix.shape) * matrix.bits
    assert quantised.told["bits"] == pytest.approx(bits / weights)
    for path, p in promoe.parameters.items():
        if path in quantised.model.parameters:
            np.testing.assert_array_equal(quantised.model.parameters[path], p)


def test_nothing_to_do_is_the_same_model(promoe):
    settings = QuantiseSettings(bits=0, modulation=0)
    assert quantise(promoe, settings, None).model is promoe


def test_nearest_by_hand(promoe):
    """One unit at a time is as the whole stack at once."""
    path = "trunk.segments.0.blocks.1.feed_forward.experts.w_in"
    quantised = quantise(promoe, QuantiseSettings(method="nearest", group=8), None).model
    expected = nearest(jnp.asarray(promoe.parameters[path]), 4, 8)
    np.testing.assert_array_equal(quantised.parameters[f"{path}.codes"], expected.codes)
    np.testing.assert_array_equal(quantised.parameters[f"{path}.scale"], expected.grid.scale)


@pytest.mark.parametrize("moe", [PROMOE, UNLIKE], ids=["promoe", "unlike"])
def test_the_walk_goes_through_the_network(moe):
    """Its inputs leave the last block as the trunk's; what the first matrix sees is what it is
    given, and each expert's tokens are those of its group."""
    model = model_of(moe)
    network, parameters = model.config.model, jax.device_put(dict(model.parameters))
    (inputs,) = list(calibration(model).batches())[:1]
    walk = Walk(network, parameters, [inputs])
    whole = functional(network)(parameters)
    x, given, _ = whole.enter(inputs.x, inputs.t, inputs.y)
    seen: dict[str, Seen] = {}
    own: dict[str, jax.Array] = {}
    for number, place in enumerate(places(network)):
        own = of_block(parameters, place)
        names = [k for k in own if k.endswith(("qkv.kernel", "w_in", "w_out"))]
        seen = walk.look(place, own, names)
        if number == 0:
            condition = jax.nn.silu(given.condition)
            both = condition @ own["modulation.kernel"] + own["modulation.bias"]
            shift, scale = jnp.split(both, 6, axis=-1)[:2]
            h = np.asarray(modulate(x, shift, scale), np.float64).reshape(-1, network.width)
            found = seen["attention.qkv.kernel"]
            np.testing.assert_allclose(found.own, h.T @ h, rtol=1e-4, atol=1e-3)
            assert found.tokens == found.all_tokens == len(h)
        walk.advance(place, own)
    ((last, *_),) = walk._rows
    np.testing.assert_allclose(last, whole.trunk(x, given)[0], rtol=1e-4, atol=1e-4)
    routed = seen["feed_forward.experts.w_in"]
    shared = seen["feed_forward.shared.experts.w_in"]
    np.testing.assert_allclose(routed.everywhere, shared.everywhere, rtol=1e-5, atol=1e-3)
    groups = [routed, *(seen[k] for k in seen if k.endswith("unlike.0.w_in"))]
    total = sum(float(group.tokens.sum()) for group in groups)
    tokens = float(routed.all_tokens)
    assert tokens == 16 * 16
    if moe is PROMOE:  # each token has one expert, the unconditional one included
        assert total == tokens
        own_sum = routed.own.sum(axis=0)
        np.testing.assert_allclose(own_sum, routed.everywhere, rtol=1e-4, atol=1e-2)
    else:  # of three choices, those that are no recurrent expert
        assert 0 < total < 3 * tokens


def of_block(parameters, place: Place) -> dict[str, jax.Array]:
    return {
        path.removeprefix(place.prefix): jnp.asarray(p[place.unit])
        for path, p in parameters.items()
        if path.startswith(place.prefix)
    }


def test_rare_experts_have_the_layers_inputs():
    """By hand: half as many tokens as inputs; none; and so many that the layer's count nothing."""
    own = jnp.stack([jnp.full((4, 4), 2.0), jnp.zeros((4, 4)), jnp.full((4, 4), 1e6)])
    seen = Seen(own, jnp.full((4, 4), 30.0), jnp.array([2.0, 0.0, 1e6]), jnp.float32(10))
    assert seen.blended()[:, 0, 0].tolist() == [14.0, 12.0, 1e6 + 12]


def test_an_expert_without_tokens(promoe):
    """No input has the null label, so that the unconditional expert, the last, sees none."""
    shown = calibration(promoe)
    shown = Calibration(
        promoe.config.objective,
        shown._clean,
        shown._label_N,
        promoe.config.model.null_label,
        dataclasses.replace(shown.settings, null_share=0.0),
    )
    done = quantise(promoe, QuantiseSettings(method="gptq", group=8), shown)
    (layer,) = done.told["tokens"]
    assert layer[-1] == 0
    assert sum(layer) == 4 * 16 * 16
    kept = jax.device_put(dict(done.model.parameters))
    for packed in packed_matrices(done.model.config.model, kept).values():
        assert np.isfinite(packed.weights()).all()


def test_what_is_refused(promoe):
    quantised = quantise(promoe, QuantiseSettings(), None).model
    with pytest.raises(ConfigError, match="the model has matrices packed to 4 and 8 bits"):
        apply_step(quantised, DropSettings(keep=2), None)
    soft = model_of(SOFT_MOE)
    with pytest.raises(ConfigError, match=r"'gptq', but .* 'soft'.*allowed: method=hqq"):
        quantise(soft, QuantiseSettings(method="gptq"), calibration(soft))
    assert quantise(soft, QuantiseSettings(), None).told["bits"] > 4
    huge = dataclasses.replace(
        promoe, parameters={k: np.asarray(p) * 1e9 for k, p in promoe.parameters.items()}
    )
    with pytest.raises(ConfigError, match="weights too large for scales in float16"):
        quantise(huge, QuantiseSettings(), None)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("quantise:bits=1", "bits is '1'; allowed: 2 to 8, or 0"),
        ("quantise:attention=9", "attention is '9'; allowed: 2 to 8, or 0"),
        ("quantise:method=luck", "method is 'luck'"),
        ("quantise:group=0", "group is '0'"),
    ],
)
def test_a_setting_that_is_none_is_one_sentence(text, told):
    with pytest.raises(ConfigError, match=told):
        chosen_steps([text])


def test_by_the_command(tmp_path):
    """A recipe makes a folder that is sampled from as any other, and tells what it is."""
    run = write_fresh_run(tmp_path / "run", tiny(PROMOE))
    output = tmp_path / "small"
    flags = [f"--workdir={run}", f"--output={output}", "--recipe=w4", "--images=8", "--times=2"]
    assert command.main(flags) == 0
    record = read_compressed(output)
    assert record is not None
    assert record.after.parameters == record.before.parameters
    assert record.after == size_of(read_model(output, ema=True))
    assert record.after.bytes < record.before.bytes
    assert record.steps[0].step == "quantise:method=gptq"
    drawn = [f"--output={tmp_path / 'drawn'}", "--num_samples=2", "--steps=1"]
    assert sample.main([f"--workdir={output}", *drawn]) == 0
