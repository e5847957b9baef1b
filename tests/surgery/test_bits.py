"""Bits of single experts' matrices, under a budget."""

import dataclasses
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.config import ConfigError
from dit_moe.models.parameters import functional
from dit_moe.models.unpacking import packed_matrices, unpacked
from dit_moe.nn.packed import packed_bytes
from dit_moe.runs.loading import load_run
from dit_moe.runs.model_folder import write_model
from dit_moe.runs.tensor_files import read_metadata
from dit_moe.surgery.compress.allocation import allocate
from dit_moe.surgery.compress.methods import chosen_steps
from dit_moe.surgery.compress.quantise import QuantiseSettings, quantise
from dit_moe.surgery.compress.rounding import nearest
from dit_moe.surgery.compress.sensitivity import items_of, losses, measured, outlier_score, turns
from dit_moe.surgery.compress.steps import Done, Model
from tests.surgery.compressing import answers, model_of, shown
from tests.tiny import DIT_MOE, PROMOE, UNLIKE

EXPERTS = "trunk.segments.0.blocks.1.feed_forward.experts.w_in"


@pytest.mark.parametrize("seed", range(6))
def test_the_best_of_all(seed):
    """As by trying all maps of six matrices, of sizes with a common divisor."""
    rng = np.random.default_rng(seed)
    choices, size_I = (2, 3, 5), rng.choice([8, 16, 24], 6)
    error_IxB = np.sort(rng.exponential(size=(6, 3)), axis=1)[:, ::-1]
    budget = int(size_I.sum() * rng.uniform(2, 5))

    def total(bits_I) -> float:
        return sum(error_IxB[i, choices.index(int(b))] for i, b in enumerate(bits_I))

    within = [
        bits_I for bits_I in itertools.product(choices, repeat=6) if size_I @ bits_I <= budget
    ]
    found = allocate(error_IxB, size_I, choices, budget)
    assert size_I @ found <= budget
    assert total(found) == pytest.approx(min(map(total, within)))


def test_a_budget_is_kept_and_used_up():
    """Whatever the sizes; and where all sizes are equal, to the last matrix that fits."""
    rng = np.random.default_rng(0)
    size_I = rng.integers(1, 10**9, 40)  # of no common divisor
    error_IxB = size_I[:, None] * 4.0 ** -np.array([2, 3, 4])
    budget = int(2.7 * size_I.sum())
    spent = size_I @ allocate(error_IxB, size_I, (2, 3, 4), budget)
    assert 0.999 * budget < spent <= budget
    equal = np.full(40, 64)
    worthless = np.zeros((40, 2))
    assert equal @ allocate(worthless, equal, (2, 4), int(2.5 * equal.sum())) == 2.5 * 40 * 64
    with pytest.raises(ValueError, match="fewer than all matrices with 2"):
        allocate(worthless, equal, (2, 4), 1)


def outputs(model: Model) -> np.ndarray:
    x, t, y = (
        jnp.linspace(-1, 1, 128).reshape(2, 8, 8, 1),
        jnp.array([0.2, 0.8]),
        jnp.array([3, 10]),
    )
    parameters = {k: jnp.asarray(v) for k, v in model.parameters.items()}
    run = jax.jit(lambda p: functional(model.config.model)(p)(x, t, y).value)
    return np.asarray(run(parameters))


@pytest.fixture(scope="module")
def original() -> Model:
    """Two MoE layers."""
    return model_of(DIT_MOE)


@pytest.fixture(scope="module")
def uneven(original) -> Done:
    settings = QuantiseSettings(
        budget=3.2, choices=(2, 3, 5), by="use", method="gptq", group=8, attention=0, modulation=0
    )
    return quantise(original, settings, shown(original))


def test_each_expert_has_its_own_bits(original, uneven):
    """What is told, what is stored and what is computed agree; shared experts have most."""
    network = uneven.model.config.model
    parameters = jax.device_put(dict(uneven.model.parameters))
    found = packed_matrices(network, parameters)
    assert found.keys() == uneven.told["matrices"].keys()
    weights = bits = 0
    for path, matrix in found.items():
        told = uneven.told["matrices"][path]
        size, units = np.prod(matrix.shape[-2:]), matrix.shape[0]
        each = np.broadcast_to(np.array(told), matrix.shape[:2])
        weights, bits = weights + size * each.size, bits + size * each.sum()
        predicted = sum(packed_bytes(matrix.shape[-2:], int(b), 8) for b in each.ravel())
        places = 0 if np.ptp(each) == 0 else 4 * each.size
        assert sum(p.nbytes for p in jax.tree.leaves(matrix)) == predicted + places, path
        assert units in (1, 2)
    assert uneven.told["bits"] == bits / weights
    assert 3.19 < bits / weights <= 3.2
    mixed = [told for told in uneven.told["matrices"].values() if not isinstance(told, int)]
    assert mixed, "no stack has unlike bits"
    shared = [told for path, told in uneven.told["matrices"].items() if ".shared." in path]
    assert min(np.min(told) for told in shared) >= np.mean([np.mean(told) for told in mixed])
    again, whole = unpacked(network, parameters)
    dense = dataclasses.replace(
        uneven.model, config=dataclasses.replace(uneven.model.config, model=again), parameters=whole
    )
    np.testing.assert_allclose(outputs(uneven.model), outputs(dense), rtol=1e-4, atol=1e-5)
    error = (
        np.square(outputs(dense) - outputs(original)).mean() / np.square(outputs(original)).mean()
    )
    assert 0 < error < 0.5


def test_every_expert_is_rounded_with_its_bits(original):
    """By hand, expert by expert."""
    settings = QuantiseSettings(budget=3, choices=(2, 4), by="outliers", method="nearest", group=8)
    done = quantise(original, settings, None)
    _, whole = unpacked(
        done.model.config.model, {k: jnp.asarray(v) for k, v in done.model.parameters.items()}
    )
    unit, seen = {}, set()
    for path, told in sorted(done.told["matrices"].items()):
        if ".feed_forward." not in path:
            continue
        name = path.split(".", 3)[3]
        for row in range(whole[path].shape[0]):
            block = unit[name] = unit.get(name, -1) + 1
            for expert in range(whole[path].shape[1]):
                bits = told if isinstance(told, int) else told[row][expert]
                w = original.parameters[f"trunk.segments.0.{name}"][block, expert]
                seen.add(bits)
                np.testing.assert_array_equal(
                    whole[path][row, expert], nearest(jnp.asarray(w), bits, 8).weights()
                )
    assert seen == {2, 4}


def write(model: Model, folder: Path) -> None:
    folder.mkdir()
    told = {"step": 0, "ema": True, "name": folder.name}
    write_model(folder, folder, model.config, model.parameters, **told)


def test_kept_and_read_again(uneven, tmp_path):
    """The metadata tell each expert's bits; places that are no places are refused."""
    write(uneven.model, tmp_path / "small")
    run = load_run(tmp_path / "small")
    assert run.config.model == uneven.model.config.model
    for path, p in uneven.model.parameters.items():
        np.testing.assert_array_equal(run.parameters[path], p)
    (file,) = (tmp_path / "small").glob("*.safetensors")
    told = json.loads(read_metadata(file)["packed"])["matrices"]
    assert any(isinstance(matrix["bits"], list) for matrix in told.values())
    wrong = {
        k: np.zeros_like(p) if k.endswith(".place") else p
        for k, p in uneven.model.parameters.items()
    }
    broken = dataclasses.replace(uneven.model, parameters=wrong)
    write(broken, tmp_path / "broken")
    with pytest.raises(ConfigError, match=r"place in .*gives experts the places .*allowed: 0 to 3"):
        load_run(tmp_path / "broken")


def test_layers_with_as_many_of_each_share_a_scan(original):
    """Whichever experts they are; other layers are segments of their own."""
    bits = QuantiseSettings(budget=3, choices=(2, 4), by="first", method="nearest", group=8)
    first = quantise(original, bits, None).model.config.model
    assert [s.depth for s in first.trunk] == [1, 1]
    even = dataclasses.replace(bits, budget=4)
    assert len(quantise(original, even, None).model.config.model.trunk) == 1


def test_measured_losses(original):
    """They fall with bits, are 0 of an expert that no token chose, and by hand are what the
    prediction changes by, time by time."""
    calibration, path = shown(original), EXPERTS.replace("blocks.1", "blocks.0")
    items = items_of(original.config.model, {path: 4})
    assert len(items) == 2 * 4
    rounded = jax.jit(lambda w, bits: nearest(w, bits, 8).weights(), static_argnums=1)
    found = measured(original, items, (2, 4, 8), calibration, rounded)
    used = found[:, 0].sum(axis=-1) > 0
    assert used.sum() >= 6
    assert (np.diff(found[used].sum(axis=-1), axis=1) < 0).all()
    assert (found[~used] == 0).all()
    matrices = original.parameters[path].copy()
    matrices[1, 2] = rounded(jnp.asarray(matrices[1, 2]), 4)
    other = dataclasses.replace(original, parameters={**original.parameters, path: matrices})
    before, after = answers(calibration, original, other)
    by_time = np.square(before - after).reshape(3, -1).mean(axis=1)
    np.testing.assert_allclose(found[6, 1], by_time, rtol=1e-4)


@pytest.mark.parametrize("by", ["use", "first", "outliers", "importance", "random"])
def test_guesses(by):
    """Of every matrix, positive where it is used, a quarter with each bit; of an unconditional
    expert as of a shared one."""
    model = model_of(PROMOE)
    items = items_of(
        model.config.model, {EXPERTS: 5, EXPERTS.replace("experts", "shared.experts"): 1}
    )
    found = losses(model, items, (2, 3), by, shown(model), lambda w, _: w)
    assert found.shape == (6, 2)
    np.testing.assert_allclose(found[:, 1], found[:, 0] / 4)
    assert (found >= 0).all()
    if by == "use":
        assert found[4, 0] == found[5, 0] == found.max()
        # Half of the images have a class, and their tokens one of the routed experts.
        assert found[:4, 0].sum() == pytest.approx(found[4, 0] / 2)


def test_an_outlier_is_found():
    w_DxG = np.ones((6, 8))
    w_DxG[3, 2] = -40
    assert outlier_score(w_DxG) == outlier_score(7 * w_DxG) == 40 / (47 / 8)
    assert outlier_score(np.ones((6, 8))) == 1


def test_a_feed_forward_that_does_nothing_turns_nothing(original):
    still = {
        path: np.zeros_like(p) if path.endswith("w_out") else p
        for path, p in original.parameters.items()
    }
    assert turns(dataclasses.replace(original, parameters=still), shown(original)) == pytest.approx(
        [0, 0], abs=1e-6
    )
    assert min(turns(original, shown(original))) > 1e-3


def test_recurrent_experts_stay_whole():
    """They have matrices of the same names, but none that can be packed."""
    settings = QuantiseSettings(budget=3, choices=(2, 4), by="first", method="nearest", group=8)
    told = quantise(model_of(UNLIKE), settings, None).told["matrices"]
    assert any(".unlike.0.w_in" in path for path in told)
    assert not any(".unlike.1." in path for path in told)


def test_what_is_refused():
    for text, told in (
        ("quantise:budget=9", "budget is 9.0; allowed: 2 to 6"),
        ("quantise:budget=3,shared=4", "shared is 4 with a budget"),
        ("quantise:budget=3,choices=1,4", "choices"),
        ("quantise:budget=3,by=luck", "by is 'luck'"),
    ):
        with pytest.raises(ConfigError, match=told):
            chosen_steps([text])
    groups = model_of(UNLIKE)
    with pytest.raises(ConfigError, match=r"by is 'use', but the model's moe\.unlike"):
        quantise(groups, QuantiseSettings(budget=3, by="use"), shown(groups))
