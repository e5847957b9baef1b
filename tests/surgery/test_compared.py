"""A compressed model beside its original, and the part of the report that shows it."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.commands import compress as command
from dit_moe.commands import report
from dit_moe.models.parameters import functional
from dit_moe.report.compressed import section
from dit_moe.runs.loading import Run, load_run
from dit_moe.runs.model_folder import write_beside
from dit_moe.runs.open_folder import write_tensors
from dit_moe.surgery.compress import compared as module
from dit_moe.surgery.compress.compared import compare, compared
from dit_moe.surgery.compress.quantise import QuantiseSettings, quantise
from tests.surgery.compressing import changed, model_of, shown
from tests.tiny import DIT_MOE


def run_of(model) -> Run:
    parameters = {path: jnp.asarray(p) for path, p in model.parameters.items()}
    return Run(model.config, 0, parameters)


def test_error_and_changed_choices_by_hand():
    """Nothing of a model beside itself; of another the relative error, time by time, and the share
    of the original's choices that are gone."""
    model = model_of(DIT_MOE)
    calibration = shown(model)
    error, choices = compare(run_of(model), run_of(model), calibration)
    assert error == (0, 0, 0)
    assert choices == ((0, 0, 0), (0, 0, 0))

    def swap(router: np.ndarray) -> None:
        router[1] = router[1][:, [1, 0, 2, 3]]  # of the second layer, two experts' columns

    other = changed(model, "router.kernel", swap)
    error, choices = compare(run_of(model), run_of(other), calibration)
    assert choices[0] == (0, 0, 0)  # nothing before it has changed
    build = functional(model.config.model)
    look = jax.jit(lambda p, i: build(p)(i.x, i.t, i.y))
    for inputs in calibration.batches():
        inputs = inputs._replace(time=0, place=0.0)
        a, b = (look(dict(m.parameters), inputs) for m in (model, other))
        relative = np.square(a.value - b.value).sum() / np.square(a.value).sum()
        assert any(found == pytest.approx(relative, rel=1e-4) for found in error)
        of_a, of_b = (
            {*zip(r.token[1].tolist(), r.expert[1].tolist(), strict=True)}
            for r in (a.routing[0], b.routing[0])
        )
        share = len(of_a - of_b) / len(of_a)
        assert 0 < share < 1
        assert any(found == pytest.approx(share) for found in choices[1])


def test_layers_that_have_become_segments():
    """Unlike bits part the trunk; layers are still compared one by one."""
    model = model_of(DIT_MOE, seed=1)
    settings = QuantiseSettings(budget=3, choices=(2, 4), by="first", method="nearest", group=8)
    other = quantise(model, settings, None).model
    assert len(other.config.model.trunk) == 2
    error, choices = compare(run_of(model), run_of(other), shown(model))
    assert min(error) > 0
    assert all(layer is not None and 0 < max(layer) < 1 for layer in choices)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A dense model with random weights, quantised: its page needs no analysis of experts."""
    folder = tmp_path_factory.mktemp("dense")
    model, whole = model_of(None), folder / "whole"
    whole.mkdir()
    write_tensors(whole, model.parameters, model.config.model, ema=True)
    write_beside(whole, whole, model.config)
    flags = [f"--workdir={whole}", f"--output={folder / 'small'}", "--steps=quantise:group=8"]
    assert command.main(flags) == 0
    return folder / "small"


def test_the_page_of_a_compressed_folder(small, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TIMES", 2)
    page = tmp_path / "page.html"
    assert report.main([f"--workdir={small}", f"--output={page}"]) == 0
    text = page.read_text()
    found = section(small)
    assert found is not None
    assert not found.missing
    for cell in (c for row in found.rows for c in row):
        assert f"<td>{cell}</td>" in text
    assert [row[-1] for row in found.rows] == ["32", "5.47"]
    assert found.picture is not None
    assert found.picture[1] in text
    told = compared(small, small / "compared").compared
    assert len(told.error) == 2
    assert all(0 < error < 1 for error in told.error)
    assert told.changed == ()


def test_without_its_original_the_sizes_stay(small, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(small, alone, ignore=shutil.ignore_patterns("compared"))
    record = module.read_compressed(alone)
    assert record is not None
    gone = dataclasses.replace(record, source=str(tmp_path / "gone"))
    module.write_record(alone / "compressed.json", gone)
    found = section(alone)
    assert found is not None
    assert "not compared with the original: the compressed folder's source is" in found.missing
    assert len(found.rows) == 2
    assert not (alone / "compared").exists()
    assert load_run(alone).config == load_run(small).config
