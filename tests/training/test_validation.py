"""The loss on held-out data: the same noise every time, and nothing of training changed by it."""

import csv
import dataclasses

import jax
import numpy as np
import pytest

from dit_moe.config import Config, ConfigError, MeshConfig
from dit_moe.data import digits
from dit_moe.data.sources import build_sources
from dit_moe.devices.mesh import build_mesh
from dit_moe.diffusion.integrate import build_objective
from dit_moe.models.parameters import functional, init_parameters
from dit_moe.runs.folder import write_config
from dit_moe.training.loop import train
from dit_moe.training.step import image_keys
from dit_moe.training.validation import NAMES, Validation, build_validation_loss, heldout_sources
from tests.prepared_sets import write_pictures
from tests.tiny import PROMOE, tiny
from tests.training.test_training import final_state


def with_data(config: Config, **data: object) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data))


@pytest.fixture(scope="module")
def measured() -> tuple[Validation, dict[str, jax.Array]]:
    config = tiny(None, validate_every=1, validation_batches=2, accumulation=2)
    config = dataclasses.replace(config, mesh=MeshConfig(data=8), seed=3)
    sources = build_sources(config.data, config.model)
    heldout = heldout_sources(config.data, config.model, 1, sources)
    parameters = init_parameters(config.model, jax.random.key(1))
    return Validation(config, heldout, build_mesh(config.mesh)), parameters


def test_nothing_of_it_changes_from_time_to_time(measured):
    validation, parameters = measured
    first, again = (validation.measure(parameters) for _ in range(2))
    assert tuple(first) == NAMES
    assert first == again
    other = {path: value + 0.1 for path, value in parameters.items()}
    assert validation.measure(other)["validation/loss"] != first["validation/loss"]


def test_it_is_of_images_that_are_not_trained_on(measured):
    validation, _ = measured
    seen = {(image / np.float32(127.5) - 1).tobytes() for image in digits.load("heldout")[0]}
    batches = [np.asarray(batch.x) for batch in validation._batches]
    assert [len(x) for x in batches] == [16, 16]
    images = [image.tobytes() for x in batches for image in x]
    assert len(set(images)) == 32
    assert set(images) <= seen


def test_it_is_the_objectives_loss_alone():
    """No auxiliary losses, no dropped labels, whatever the number of parts."""
    config = tiny(PROMOE, batch_size=8)
    parameters = init_parameters(config.model, jax.random.key(1))
    x = jax.random.normal(jax.random.key(2), (8, 8, 8, 1))
    y, key = jax.numpy.arange(8), jax.random.key(5)
    network = functional(config.model)(parameters)
    _, (expected, prediction) = build_objective(config.objective).loss(
        network, image_keys(key, 8), x, y
    )
    assert sum(prediction.losses.values()) > 0
    for parts in (1, 2):
        loss = build_validation_loss(config.model, config.objective, parts)
        found = loss(parameters, key, x, y)
        np.testing.assert_allclose(found["loss"], expected["mse"], rtol=1e-5)


def test_a_run_with_it_learns_the_same(tmp_path):
    """And has a row for it, between log lines too."""
    config = tiny(None, steps=4, log_every=2)
    train(config, tmp_path / "without")
    settings = dataclasses.replace(config.train, validate_every=3, validation_batches=1)
    train(dataclasses.replace(config, train=settings), tmp_path / "with")
    expected, actual = (final_state(config, tmp_path / name) for name in ("without", "with"))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    rows = list(csv.DictReader((tmp_path / "with" / "metrics.csv").open()))
    assert [(row["step"], row["validation/loss"] != "") for row in rows] == [
        ("2", False),
        ("3", True),
        ("4", True),  # the end
    ]
    assert 0.1 < float(rows[-1]["validation/loss"]) < 10
    with (tmp_path / "without" / "metrics.csv").open() as file:
        assert "validation" not in file.readline()
    write_config(config, tmp_path / "with", resuming=True)  # it may go on without


def test_what_is_asked_for_must_be_there(tmp_path):
    image, label = np.zeros((4, 8, 8, 1), np.uint8), np.arange(4)
    write_pictures(tmp_path / "a", image, label)
    config = with_data(tiny(None), source="prepared", path=(str(tmp_path / "a"),))
    sources = build_sources(config.data, config.model)

    def heldout(every: int | None, **data: object):
        asked = with_data(config, **data)
        return heldout_sources(asked.data, asked.model, every, sources)

    assert not heldout(None)
    assert not heldout(0)
    with pytest.raises(ConfigError, match="validate_every is 2, but the data hold nothing out"):
        heldout(2)
    write_pictures(tmp_path / "b", image[:3] + 1, label[:3])
    (found,) = heldout(None, validation_path=(str(tmp_path / "b"),))
    assert len(found) == 3
    assert not heldout(0, validation_path=(str(tmp_path / "b"),))
    write_pictures(tmp_path / "c", image, label, classes=9)
    with pytest.raises(ConfigError, match="validation_path has other classes"):
        heldout(None, validation_path=(str(tmp_path / "c"),))


def test_both_names_of_columns_agree():
    from dit_moe.report.metrics import group

    charts = {c.title: c.names for c in group(["loss", "loss_t0", *NAMES])}
    assert charts["loss"] == {"training": "loss", "validation": "validation/loss"}
    assert list(charts["validation/loss by quarter of the time range"].values()) == [*NAMES[1:]]
