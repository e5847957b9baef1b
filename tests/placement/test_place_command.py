"""The command that places experts: its numbers, its folder, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dit_moe
from dit_moe.analysis.counts import Counts
from dit_moe.analysis.decisions import Decisions
from dit_moe.commands import place as command
from dit_moe.config import ConfigError
from dit_moe.placement.place import judge, rooms_of, solve, unplaced
from dit_moe.placement.record import Placement
from dit_moe.storage.records import read_record
from tests.analysis.fresh_run import write_fresh_run
from tests.tiny import DIT_MOE, PROMOE, tiny

BOTH = dataclasses.replace(DIT_MOE, num_experts=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """DiT-MoE with 4 experts in each of two layers, not trained."""
    return write_fresh_run(tmp_path_factory.mktemp("runs") / "run", tiny(BOTH))


@pytest.fixture(scope="module")
def placed(run):
    """The folder that the command writes for two devices."""
    output = run.parent / "placed"
    flags = ["--devices=2", f"--output={output}", "--num_images=40", "--time_bins=2"]
    assert command.main([f"--workdir={run}", *flags]) == 0
    return output


def test_the_folder_is_the_same_model(run, placed):
    record = read_record(placed / "placement.json", Placement)
    assert [sorted(layer.order) for layer in record.layers] == [[0, 1, 2, 3]] * 2
    assert any(layer.order != (0, 1, 2, 3) for layer in record.layers)
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    t, y = jnp.linspace(0.1, 0.9, 4), jnp.arange(4)
    before, after = (dit_moe.load(folder)(x, t, y) for folder in (run, placed))
    np.testing.assert_allclose(after.value, before.value, rtol=0, atol=1e-5)
    # What the router chooses is what the record says to be there now.
    (old,), (new,) = before.routing, after.routing
    for layer, told in enumerate(record.layers):
        renamed = np.asarray(told.order)[new.expert[layer]]
        np.testing.assert_array_equal(np.sort(renamed.reshape(-1, 2)), _pairs(old.expert[layer]))


def _pairs(expert_A) -> np.ndarray:
    """A token's two experts, ascending."""
    return np.sort(np.asarray(expert_A).reshape(-1, 2))


def test_what_the_record_tells(placed):
    record = read_record(placed / "placement.json", Placement)
    assert (record.devices, record.by, record.before.local) == (2, "label", 0.5)
    assert {way.by for way in record.ways} == {"label", "position"}
    # 2 layers, 16 tokens of 2 assignments, of which half travel, there and back, 16 floats.
    assert record.before.bytes == pytest.approx(2 * 16 * 2 * 0.5 * 2 * 16 * 4)
    for way in record.ways:
        assert way.fitted >= 0.5 - 1e-9  # no worse than any even placement is on average
        first = 2 * 16 * 0.5 if way.by == "position" else 0  # tokens that are sent on first
        rows = 2 * 16 * 2 * (1 - way.local) + first
        assert way.bytes == pytest.approx(rows * 2 * 16 * 4)
    arrays = np.load(placed / "placement.npz")
    assert arrays["label_LxYxE"].sum() == 2 * 20 * 2 * 16 * 2  # 20 images at 2 times
    np.testing.assert_allclose(arrays["tokens_LxRxG"].sum(axis=(0, 1)), 10)  # 10 classes, 2 layers


def test_without_an_output_it_prints_and_writes_nothing(run, capsys):
    before = sorted(path.name for path in run.parent.iterdir())
    flags = ["--devices=4", "--num_images=20", "--time_bins=2", "--inputs=sampling", "--steps=2"]
    assert command.main([f"--workdir={run}", *flags]) == 0
    assert "| as it lies | 25.0% | 25.0% | 75.0% |" in capsys.readouterr().out
    assert sorted(path.name for path in run.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--devices=3"], "devices is 3 with 4 experts; allowed: 2 or more, a divisor"),
        (["--devices=1"], "devices is 1 with 4 experts"),
        (["--devices=2", "--num_images=19"], "num_images is 19 with 10 classes; allowed: 20"),
        (["--devices=2", "--batch_size=0"], "batch_size is 0"),
    ],
)
def test_what_cannot_be_is_one_sentence(run, flags, told, capsys):
    assert command.main([f"--workdir={run}", f"--output={run.parent / 'no'}", *flags]) == 2
    assert told in capsys.readouterr().err
    assert not (run.parent / "no").exists()


def test_the_unconditional_expert_keeps_its_place_and_its_room():
    """13 experts on 4 devices lie 4, 4, 4 and 1: the last device has no routed one."""
    model = tiny(dataclasses.replace(PROMOE, num_experts=12)).model
    (room_G,) = rooms_of(model, 4)
    np.testing.assert_array_equal(room_G, [4, 4, 4, 0])
    (room_G,) = rooms_of(tiny(PROMOE).model, 2)
    np.testing.assert_array_equal(room_G, [3, 1])
    with pytest.raises(ConfigError, match="devices is 8 with 12 experts"):
        rooms_of(model, 8)


def counted(rng: np.random.Generator, images: int) -> Counts:
    """Two layers of 4 experts, 4 tokens an image, 2 times: in the first layer the class decides, in
    the second position and time."""
    label_N = np.resize(np.arange(4), images)
    counts = Counts(label_N, range(4), np.arange(2), (2, 2, 2, 2, 4, 1))
    scatter = rng.permutation(4)
    for time in range(2):
        first = np.stack(
            [
                np.repeat(label_N[:, None], 4, axis=1),
                np.tile(scatter[(np.arange(4) + time) % 4], (images, 1)),
            ]
        )
        chosen = first[..., None] == np.arange(4)
        seen = Decisions(chosen, first, np.zeros((2, images, 1)))  # pyright: ignore[reportArgumentType]
        counts.add(seen, np.arange(images), np.full(images, time))
    return counts


def test_each_way_solves_the_layer_that_is_made_for_it():
    model = tiny(BOTH).model
    counts, rooms = counted(np.random.default_rng(0), 8), rooms_of(model, 4)
    assert unplaced(counts, model, rooms).local == 0.25
    by_label = judge(counts, model, solve(counts, rooms, "label", 0), rooms, "label")
    # All of the first layer stays, and of the second as much as by chance.
    assert by_label.local == pytest.approx((1 + 0.25) / 2)
    assert by_label.bytes == pytest.approx(4 * 0.75 * 2 * 16 * 4)
    by_position = judge(counts, model, solve(counts, rooms, "position", 0), rooms, "position")
    assert by_position.local == pytest.approx((0.25 + 1) / 2)
    # Three of four tokens go to other devices first, in both layers.
    assert by_position.bytes == pytest.approx((4 * 0.75 + 2 * 4 * 0.75) * 2 * 16 * 4)
    assert by_label.busiest == pytest.approx(1)


def test_held_out_images_are_others(run):
    """Both halves have all classes, and what is fitted comes of the first alone."""
    from dit_moe.analysis.analyse import open_run
    from dit_moe.placement import decided

    opened = open_run(run, 64, inputs="training", num_images=30, time_bins=2)
    halves = decided.decided(opened, 64)
    for counts, images in zip(halves, (15, 15), strict=True):
        assert len(counts.class_N) == images
        assert counts.visits_B.tolist() == [images, images]
        assert (counts.position_NxSxLxE.sum(axis=(1, 3)) == 2 * 16 * 2).all()
    assert set(halves.fit.class_N) == set(halves.held_out.class_N) == set(range(10))
