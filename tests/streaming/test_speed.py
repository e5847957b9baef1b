"""What a pass is predicted to take, and what it is predicted from."""

import dataclasses

import pytest

from dit_moe.commands import plan as command
from dit_moe.config import ConfigError
from dit_moe.streaming import measuring
from dit_moe.streaming.layout import Layer, Leaf, layers_of
from dit_moe.streaming.measuring import measure, measure_disk
from dit_moe.streaming.speed import Machine, best_images, predict, told
from tests.streaming.stores import packed
from tests.tiny import DIT_MOE, PYRAMID, tiny

MB = 2**20
# Ten layers of 40 MB.
LAYERS = tuple(
    Layer("experts", unit, 4, (Leaf("w_in", "uint8", (10 * MB,)),)) for unit in range(10)
)
MACHINE = Machine(
    disk=100 * MB,
    reading=1 / (400 * MB),
    fixed=0.5,
    each=0.25,
    held=100 * MB,
    held_each=5 * MB,
)


def test_the_longer_of_reading_and_computing():
    """By hand: of 100 + 5 + 160 MB, 160 are left, which is two layers pinned and two of a ring."""
    found = predict(LAYERS, MACHINE, 265 * MB, 1)
    assert found is not None
    assert (found.pinned, found.read) == (2, 320 * MB)
    assert found.loading == pytest.approx(3.2)
    assert found.computing == pytest.approx(0.5 + 0.25 + 320 / 400)
    assert found.seconds == found.loading
    assert found.regime == "disk-bound"
    many = predict(LAYERS, MACHINE, 105 * MB + 45 * 5 * MB, 20)
    assert many is not None
    assert many.regime == "compute-bound"
    assert many.seconds == pytest.approx(0.5 + 20 * 0.25 + many.read / MB / 400)
    all_held = predict(LAYERS, MACHINE, 505 * MB, 1)
    assert all_held is not None
    assert (all_held.pinned, all_held.read, all_held.seconds) == (10, 0, pytest.approx(0.75))
    assert predict(LAYERS, MACHINE, 184 * MB, 1) is None  # two layers are 80


def test_the_best_batch_is_about_where_the_disk_is_no_longer_waited_for():
    best = best_images(LAYERS, MACHINE, 300 * MB)
    assert best is not None
    waits, busy = predict(LAYERS, MACHINE, 300 * MB, 1), predict(LAYERS, MACHINE, 300 * MB, best)
    assert waits is not None
    assert busy is not None
    assert waits.regime == "disk-bound"
    assert busy.seconds / best < waits.seconds
    assert f"best batch: {best} images" in told(LAYERS, MACHINE, 300 * MB)
    assert best_images(LAYERS, MACHINE, 150 * MB) is None
    assert "does not fit into 0.157 GB; " in told(LAYERS, MACHINE, 150 * MB)


def test_measurements(tmp_path, monkeypatch):
    disk = measure_disk(tmp_path, 2**20)
    assert 1e6 < disk.bandwidth < 1e12
    assert 0 <= disk.processor < 1e-6
    assert not list(tmp_path.iterdir())
    # Time as if every image took 3 seconds in each of the units, beside 1 second.
    monkeypatch.setattr(
        measuring,
        "_time",
        lambda model, repeats, dtype, images: (1 + repeats * (1 + 3 * images), 10 * images),
    )
    model = dataclasses.replace(tiny(DIT_MOE).model, depth=8)
    found = measure(model, "float32", disk)
    assert (found.each, found.fixed) == (pytest.approx(3 * 8), pytest.approx(1 + 8))
    assert found.held_each == 10
    monkeypatch.setattr(measuring, "_time", lambda *args: (1.0, 10))
    with pytest.raises(ConfigError, match="too busy to be measured"):
        measure(model, "float32", disk)
    with pytest.raises(ConfigError, match="a model without experts"):
        measure(tiny(None).model, "float32", disk)


@pytest.mark.parametrize("config", [packed(DIT_MOE), tiny(PYRAMID)], ids=["packed", "pyramid"])
def test_a_pass_is_timed(config):
    model = config.model
    seconds, held = measuring._time(model, 1, "float16", 2)
    assert seconds > 0
    assert held > sum(layer.block for layer in layers_of(model, "float16")) / 8


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measuring, "measure", lambda model, dtype, disk: MACHINE)
    line = ["--preset=DiT-MoE-S/2-8E2A", "--memory=4GB"]
    assert command.main([*line, "--disk=2"]) == 0
    found = capsys.readouterr().out
    assert "12 of 12 layers stay in memory, 0 GB are read; predicted 0.75 s" in found
    for more, message in (
        (["--disk=fast"], "disk is 'fast'; allowed: auto, or GB/s from 0.001 to 1000"),
        (["--memory=4"], "memory is '4'; allowed"),
    ):
        assert command.main([*line, *more]) == 2
        assert message in capsys.readouterr().err
    assert command.main([line[0], "--disk=2"]) == 2
    assert "disk is '2' without memory" in capsys.readouterr().err
