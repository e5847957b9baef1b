"""Single weights and neurons away, and how what is left is stored."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.config import ConfigError
from dit_moe.models.parameters import functional
from dit_moe.runs import open_folder
from dit_moe.runs.sparse_tensors import filled, thinned
from dit_moe.runs.tensor_files import read_safetensors, write_safetensors
from dit_moe.surgery.compress import sparsify as sparsify_module
from dit_moe.surgery.compress.inputs import input_norms
from dit_moe.surgery.compress.layers import units_of
from dit_moe.surgery.compress.slim import SlimSettings, neuron_norms, neuron_slopes, slim
from dit_moe.surgery.compress.sparsify import (
    SparsifySettings,
    outlier_percentage,
    owl_shares,
    sparsify,
)
from dit_moe.surgery.compress.worth import worth_of
from tests.surgery.compressing import LAYER, answer, changed, model_of, shown
from tests.tiny import DIT_MOE, PROMOE, SOFT_MOE, UNLIKE

GELU = dataclasses.replace(DIT_MOE, expert="gelu")


@pytest.mark.parametrize("by", ["magnitude", "wanda"])
def test_every_output_loses_its_share(by):
    model = model_of(PROMOE)
    calibration = shown(model) if by == "wanda" else None
    done = sparsify(model, SparsifySettings(share=0.4, by=by), calibration)
    start = LAYER.format(1)
    for path, value in done.model.parameters.items():
        before = model.parameters[path]
        if not path.startswith((f"{start}experts.w_in", f"{start}experts.w_out")):
            np.testing.assert_array_equal(value, before)
            continue
        routed, unconditional = value[0, :4], value[0, 4]
        zeros = (routed == 0).sum(axis=1)
        assert (zeros == int(0.4 * routed.shape[1])).all()
        np.testing.assert_array_equal(unconditional, before[0, 4])
        np.testing.assert_array_equal(routed[routed != 0], before[0, :4][routed != 0])
    if calibration is not None:
        (use_E,) = worth_of(model, "use", calibration, 0)
        assert done.told["without_tokens"] == (use_E == 0).sum()


def test_without_differences_of_inputs_wanda_is_magnitude(monkeypatch):
    model = model_of(DIT_MOE)
    plain = sparsify(model, SparsifySettings(share=0.5, by="magnitude"), None).model
    ones = {"tokens": np.ones(4), "w_in": np.ones((4, 16)), "w_out": np.ones((4, 16))}
    monkeypatch.setattr(sparsify_module, "input_norms", lambda *_: [ones, ones])
    wanda = sparsify(model, SparsifySettings(share=0.5), shown(model)).model
    for path, value in plain.parameters.items():
        np.testing.assert_array_equal(value, wanda.parameters[path])
    # An input that is never there is worth nothing.
    silent = {**ones, "w_in": np.where(np.arange(16) < 8, 0.0, 1.0) * np.ones((4, 16))}
    monkeypatch.setattr(sparsify_module, "input_norms", lambda *_: [silent, silent])
    wanda = sparsify(model, SparsifySettings(share=0.5), shown(model)).model
    w_in = wanda.parameters[LAYER.format(0) + "experts.w_in"]
    assert (w_in[:, :, :8] == 0).all()
    assert (w_in[:, :, 8:] != 0).all()


def test_norms_of_inputs_are_those_of_the_tokens():
    """A unit that sees known tokens: the hidden layer of one expert, by hand."""
    model = model_of(GELU)
    first, _ = input_norms(model, shown(model))
    assert first["w_in"].shape == (4, 16)
    assert first["w_out"].shape == (4, 16)
    assert first["tokens"].sum() == 3 * 6 * 16 * 2
    # Modulated tokens have unit variance before shift and scale: none is silent.
    assert (first["w_in"] > 0).all()


def test_experts_of_other_kinds_and_mixes_of_tokens():
    """The first kind alone loses weights; what sees no tokens has no norms of them."""
    model = model_of(UNLIKE)
    done = sparsify(model, SparsifySettings(share=0.5), shown(model))
    for path, value in done.model.parameters.items():
        if ".feed_forward.experts.w_" in path:
            assert (value == 0).sum() == value.size // 2
        else:
            np.testing.assert_array_equal(value, model.parameters[path])
    soft = model_of(SOFT_MOE)
    with pytest.raises(ConfigError, match="router is 'soft', whose experts see mixes"):
        sparsify(soft, SparsifySettings(share=0.5), shown(soft))
    sparsify(soft, SparsifySettings(share=0.5, by="magnitude"), None)


def test_owl_keeps_the_mean():
    ratios = np.array([0.5, 2.0, 1.0, 7.0])
    shares = owl_shares(ratios, 0.5, 0.08)
    assert shares.mean() == pytest.approx(0.5, abs=1e-12)
    assert np.argsort(shares).tolist() == np.argsort(-ratios).tolist()
    assert shares.max() - shares.min() == pytest.approx(0.16)
    np.testing.assert_array_equal(owl_shares(np.ones(3), 0.4, 0.08), np.full(3, 0.4))
    worth = {"w_in": np.ones((2, 4, 4)), "w_out": np.ones((2, 4, 4))}
    worth["w_in"][0, 0, 0] = 100.0
    assert outlier_percentage(worth, 5.0) == pytest.approx(100 / 64)
    model = model_of(DIT_MOE)
    settings = SparsifySettings(share=0.5, layers="owl", by="magnitude", outlier=2.0)
    shares = sparsify(model, settings, None).told["shares"]
    assert np.mean(shares) == pytest.approx(0.5, abs=1e-6)


def test_zeros_are_stored_as_bits(tmp_path):
    model = sparsify(model_of(DIT_MOE), SparsifySettings(share=0.75, by="magnitude"), None).model
    (tmp_path / "thin").mkdir()
    network = model.config.model
    open_folder.write_tensors(tmp_path / "thin", model.parameters, network, ema=True, thin=True)
    found = open_folder.read_tensors(tmp_path / "thin", model.config.model)
    for path, value in model.parameters.items():
        np.testing.assert_array_equal(found[path], value)
    stored = read_safetensors(tmp_path / "thin" / "model.safetensors")
    name = "trunk.segments.0.1.blocks.0.feed_forward.experts.w_in"
    size = 4 * 16 * 32
    assert stored[f"{name}.mask"].shape == (size // 8,)
    assert stored[f"{name}.values"].shape == (size // 4,)
    predicted = sum(
        value.nbytes
        if "experts.w_" not in path or "shared" in path
        else value.size // 8 + value.nbytes // 4
        for path, value in model.parameters.items()
    )
    thin = open_folder.stored_tensors(model.parameters, thin=True)
    assert sum(tensor.nbytes for tensor in thin.values()) == predicted


def test_bits_of_any_size_and_sign(tmp_path):
    tensor = np.zeros((3, 7), np.float32)
    tensor[0, 1], tensor[1, 2], tensor[2, 6] = 1.5, -0.0, -2.0
    stored = thinned({"a": tensor, "b": np.ones(5, np.float32), "c": np.zeros(9, np.uint8)})
    assert stored.keys() == {"a.mask", "a.values", "b", "c"}
    write_safetensors(tmp_path / "x.safetensors", stored, form="dit_moe")
    read = filled(read_safetensors(tmp_path / "x.safetensors"), {"a": (3, 7), "b": (5,)})
    np.testing.assert_array_equal(np.asarray(read["a"]).view(np.uint32), tensor.view(np.uint32))
    assert read.keys() == {"a", "b", "c"}


@pytest.mark.parametrize("damage", ["one bit more", "a bit beyond", "too short"])
def test_a_mask_that_does_not_fit_is_refused(tmp_path, damage):
    model = model_of(DIT_MOE)
    parameters = {path: np.zeros_like(value) for path, value in model.parameters.items()}
    stored = open_folder.stored_tensors(parameters, thin=True)
    name = "label.table.mask"  # 11 x 16 numbers
    mask = stored[name].copy()
    if damage == "one bit more":
        mask[0] = 1
    stored[name] = {
        "too short": mask[:-1],
        "a bit beyond": np.append(mask, 1).astype(np.uint8),
    }.get(damage, mask)
    write_safetensors(tmp_path / "model.safetensors", stored, form="dit_moe")
    with pytest.raises(ConfigError, match=r"do not fit config.json: label\.table"):
        open_folder.read_tensors(tmp_path, model.config.model)


def test_a_neuron_that_gives_nothing_is_worth_nothing_and_goes_without_loss():
    def silence(w_out: np.ndarray) -> None:
        w_out[:, 0, 5] = w_out[:, 1, 9] = w_out[:, 2, 0] = w_out[:, 3, 15] = 0.0

    model = changed(model_of(DIT_MOE), "experts.w_out", silence)
    done = slim(model, SlimSettings(hidden=15), shown(model))
    assert done.told == {"hidden": [15, 15]}
    np.testing.assert_allclose(answer(done.model), answer(model), atol=1e-5)
    assert done.model.config.model.mixtures[0].hidden_ratio == 15 / 16


@pytest.mark.parametrize(
    "moe", [DIT_MOE, GELU, PROMOE, UNLIKE], ids=["swiglu", "gelu", "promoe", "unlike"]
)
def test_slimmer_experts_are_those_whose_other_neurons_give_nothing(moe):
    model = model_of(moe)
    done = slim(model, SlimSettings(hidden=4, by="magnitude"), None)

    def zeroed(value: np.ndarray) -> None:
        for layer, unit in enumerate(units_of(model.config.model, model.parameters)):
            for e, worth_F in enumerate(neuron_norms(unit)):
                value[layer, e, np.argsort(-worth_F)[4:]] = 0.0

    expected = answer(changed(model, "experts.w_out", zeroed))
    np.testing.assert_allclose(answer(done.model), expected, rtol=1e-5, atol=1e-5)


def test_slopes_are_those_of_finite_differences():
    model = model_of(DIT_MOE)
    calibration = shown(model, times=1)
    (inputs,) = calibration.batches()
    slopes = neuron_slopes(model, calibration, squared=False)
    squares = neuron_slopes(model, calibration, squared=True)
    np.testing.assert_allclose(squares[0], slopes[0] ** 2, rtol=1e-4)  # of a single batch
    build = functional(model.config.model)
    target = inputs.noise - inputs.clean
    loss = jax.jit(
        lambda p: jnp.square(build(p)(inputs.x, inputs.t, inputs.y).value - target).mean()
    )
    path = LAYER.format(0) + "experts.w_out"
    scale = max(layer.max() for layer in slopes)
    for layer, e, f in ((0, 0, 3), (0, 2, 7), (1, 1, 12)):
        found = []
        for factor in (1.05, 0.95):
            w_out = model.parameters[path].copy()
            w_out[layer, e, f] *= factor
            found.append(float(loss({**model.parameters, path: w_out})))
        slope = abs(found[0] - found[1]) / 0.1
        assert slopes[layer][e, f] == pytest.approx(slope, rel=0.05, abs=0.02 * scale)


def test_factors_that_cancel_change_no_slope():
    """What a neuron gives is the same: its worth by the loss, too, but not by its norm."""
    model = model_of(DIT_MOE)

    def up(w_in: np.ndarray) -> None:
        w_in[:, :, :, 16:] *= 4.0  # of gate and up the second half

    def down(w_out: np.ndarray) -> None:
        w_out /= 4.0

    other = changed(changed(model, "experts.w_in", up), "experts.w_out", down)
    calibration = shown(model, times=1)
    for a, b in zip(
        neuron_slopes(model, calibration, squared=False),
        neuron_slopes(other, calibration, squared=False),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
    (norm, *_), (other_norm, *_) = (
        [neuron_norms(u) for u in units_of(m.config.model, m.parameters)] for m in (model, other)
    )
    assert not np.allclose(norm, other_norm, rtol=0.1)


def test_a_width_that_is_no_ratio_is_refused():
    model = model_of(DIT_MOE)
    wide = dataclasses.replace(model.config.model, width=44, heads=11)
    wide = dataclasses.replace(model, config=dataclasses.replace(model.config, model=wide))
    with pytest.raises(ConfigError, match="hidden is 15, whose ratio to width 44 gives no whole"):
        slim(wide, SlimSettings(hidden=15, by="magnitude"), None)
