"""Bad numbers, damaged checkpoints and a full disk: no run is lost."""

import csv
import dataclasses
import errno
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from dit_moe.config import Config, ConfigError, MeshConfig
from dit_moe.loading import load_run
from dit_moe.training import loop
from dit_moe.training.checkpoint import Checkpoints, TrainingError
from dit_moe.training.loop import train
from dit_moe.training.mesh import batch_sharding, build_mesh
from dit_moe.training.state import TrainState, abstract_state, build_optimizer, init_state
from dit_moe.training.step import build_step
from tests.tiny import tiny


def small(**train: object) -> Config:
    """Without experts or sharded parameters, whose compilation takes long."""
    return dataclasses.replace(tiny(None, **train), mesh=MeshConfig(data=8))


def like(config: Config) -> TrainState:
    return abstract_state(config.model, build_optimizer(config.train), build_mesh(config.mesh))


def read(workdir: Path, step: int) -> TrainState:
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.restore(step, like(small()))


def saved(workdir: Path) -> list[str]:
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def rows(workdir: Path) -> list[dict[str, str]]:
    with (workdir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def assert_equal(actual: TrainState, expected: TrainState) -> None:
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


# Bad numbers


@pytest.mark.parametrize(
    ("factor", "settings", "mesh", "loss_is_finite"),
    [
        (np.nan, {}, MeshConfig(data=1, fsdp=1), False),
        (1e12, {"accumulation": 4, "batch_size": 32}, MeshConfig(data=8, fsdp=1), True),
    ],
    ids=["loss", "gradient"],
)
def test_a_bad_update_changes_nothing_but_the_step(factor, settings, mesh, loss_is_finite):
    config = small(warmup_steps=4, **settings)
    on = build_mesh(mesh, jax.devices()[: mesh.data * mesh.fsdp])
    x_NxHxWxC = jax.random.normal(jax.random.key(5), (config.train.batch_size, 8, 8, 1))
    y_N = jnp.arange(config.train.batch_size, dtype=jnp.int32) % 10
    with jax.set_mesh(on):
        optimizer = build_optimizer(config.train)
        state = init_state(config.model, optimizer, 0, on)
        # Large activations before an output layer of zeros: a far larger gradient than loss.
        state.parameters["modulation.bias"] += 1e10
        step = jax.jit(build_step(config, optimizer))
        good = jax.device_put((x_NxHxWxC, y_N), batch_sharding(on))
        bad = jax.device_put((x_NxHxWxC.at[0].multiply(factor), y_N), batch_sharding(on))
        before, metrics = step(state, *good)
        assert metrics["skipped"] == 0
        assert metrics["learning_rate"] == 0
        after, metrics = step(before, *bad)
        assert np.isfinite(metrics["loss"]) == loss_is_finite
        assert not np.isfinite(metrics["gradient_norm"])
        assert metrics["skipped"] == 1
        assert after.step == before.step + 1 == 2
        assert_equal(after, dataclasses.replace(before, step=after.step))
        then, metrics = step(after, *good)
        assert metrics["skipped"] == 0
        # The second update that is made, so the second learning rate of the warm-up.
        np.testing.assert_allclose(
            metrics["learning_rate"], config.train.learning_rate / 4, rtol=1e-6
        )
        assert any(np.any(then.parameters[p] != after.parameters[p]) for p in then.parameters)


def spoil(monkeypatch: pytest.MonkeyPatch, is_bad: Callable[[int], bool]) -> None:
    original = loop.device_batches

    def batches(config, sources, first_step, sharding):
        stream = original(config, sources, first_step, sharding)
        for number, item in enumerate(stream, start=first_step + 1):
            yield item._replace(x=item.x * np.nan) if is_bad(number) else item

    monkeypatch.setattr(loop, "device_batches", batches)


def test_skipped_updates_are_told_and_left_out_of_the_means(tmp_path, monkeypatch, capsys):
    spoil(monkeypatch, lambda number: number in (3, 4))
    train(small(log_every=6), tmp_path / "a")
    assert "update 3, 4 skipped: loss is nan" in capsys.readouterr().out
    train(small(log_every=1), tmp_path / "b")
    (window,), single = rows(tmp_path / "a"), rows(tmp_path / "b")
    assert window["skipped"] == "2"
    assert [row["skipped"] for row in single] == ["0", "0", "1", "1", "0", "0"]
    assert [row["loss"] == "" for row in single] == [row["skipped"] == "1" for row in single]
    for name in ("loss", "gradient_norm"):
        mean = np.mean([float(row[name]) for row in single if row["skipped"] == "0"])
        np.testing.assert_allclose(float(window[name]), mean, rtol=1e-5)
    state = read(tmp_path / "a", 6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_too_many_in_a_row_stop_and_replace_no_checkpoint(tmp_path, monkeypatch):
    spoil(monkeypatch, lambda number: number == 2 or number >= 4)
    message = (
        "^3 updates in a row were skipped up to step 6, because loss is nan; "
        "the last good checkpoint is step 3: "
    )
    with pytest.raises(TrainingError, match=message):
        train(small(steps=20, checkpoint_every=1, keep_checkpoints=2, max_skipped=3), tmp_path)
    assert saved(tmp_path) == ["1", "3"]


def test_a_row_of_skipped_updates_may_span_windows():
    skips = loop._Skips(3)
    skips.report(2, [None, "loss is nan"], None)
    skips.report(4, ["loss is nan", None], None)
    skips.report(6, ["loss is nan", "loss is inf"], None)
    with pytest.raises(TrainingError, match=r"^3 updates .* step 7, .* checkpoint is none"):
        skips.report(7, ["loss is nan"], None)
    with pytest.raises(TrainingError, match=r"^3 updates .* step 5"):  # though it recovered
        loop._Skips(3).report(5, [None, *["loss is nan"] * 3, None], 1)


# Damaged checkpoints


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    train(small(checkpoint_every=2), workdir)
    assert saved(workdir) == ["2", "4", "6"]
    return workdir


@pytest.fixture
def run(tmp_path, finished):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def truncate(checkpoint: Path) -> None:
    for path in [p for p in checkpoint.rglob("d/*") if p.is_file()]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove_arrays(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "ema" / "d")


def remove_item(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "ema")


def remove_all(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


def garbage(checkpoint: Path) -> None:
    path = checkpoint / "ema" / "manifest.ocdbt"
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


def no_json(checkpoint: Path) -> None:
    (checkpoint / "ema" / "_METADATA").write_text("{")


DAMAGES = [truncate, remove_arrays, remove_item, remove_all, garbage, no_json]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_moved_aside(damage, run, finished, capfd):
    damage(run / "checkpoints" / "6")
    remains = contents(run / "checkpoints" / "6")
    with Checkpoints(run, keep=3) as checkpoints:
        state = checkpoints.restore_newest(like(small()))
        assert checkpoints.latest_step() == 4
    assert state is not None
    assert_equal(state, read(finished, 4))
    assert saved(run) == ["2", "4", "damaged-6"]
    assert contents(run / "checkpoints" / "damaged-6") == remains
    out, err = capfd.readouterr()
    assert out.startswith("checkpoint 6 in ")
    assert out.endswith(f"{run}/checkpoints/damaged-6.\n")
    assert "Traceback" not in err


def test_a_run_goes_on_from_the_checkpoint_before(run, finished, capsys):
    for name in ("damaged-6", "damaged-6-2"):
        truncate(run / "checkpoints" / "6")
        train(small(checkpoint_every=2), run)
        assert "from step 4" in capsys.readouterr().out
        assert_equal(read(run, 6), read(finished, 6))
        assert name in saved(run)
    assert saved(run) == ["2", "4", "6", "damaged-6", "damaged-6-2"]
    assert [row["step"] for row in rows(run)] == ["2", "4", "6"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_nothing_is_moved_when_no_checkpoint_is_good(damage, run):
    for step in (2, 4, 6):
        damage(run / "checkpoints" / str(step))
    remains = contents(run / "checkpoints")
    with pytest.raises(ConfigError, match=r"^checkpoint 6 in .* nor can 4, 2 be read$") as raised:
        train(small(), run)
    assert "\n" not in str(raised.value)
    assert contents(run / "checkpoints") == remains


@pytest.mark.parametrize("damage", DAMAGES)
def test_sampling_from_a_damaged_checkpoint(damage, run, capfd):
    damage(run / "checkpoints" / "6")
    remains = contents(run)
    with pytest.raises(ConfigError, match=r"^checkpoint 6 in .* cannot be read, .*\)$") as raised:
        load_run(run)
    assert "\n" not in str(raised.value)
    assert contents(run) == remains
    assert "Traceback" not in capfd.readouterr().err


def test_too_little_memory_is_no_damage(run, monkeypatch):
    def restore(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(ocp.CheckpointManager, "restore", restore)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Out of memory"):
        train(small(), run)
    assert saved(run) == ["2", "4", "6"]


def test_resuming_makes_no_fresh_state(run, monkeypatch):
    monkeypatch.delattr(loop, "init_state")
    assert train(small(), run) is None


def test_the_abstract_state_is_the_state_without_its_values():
    config = small()
    mesh = build_mesh(MeshConfig(data=2, fsdp=4))
    optimizer = build_optimizer(config.train)
    state = init_state(config.model, optimizer, 0, mesh)

    def check(real: jax.Array, abstract: jax.ShapeDtypeStruct) -> None:
        assert (real.shape, real.dtype) == (abstract.shape, abstract.dtype)
        assert abstract.sharding is not None
        assert real.sharding.is_equivalent_to(abstract.sharding, real.ndim)

    jax.tree.map(check, state, abstract_state(config.model, optimizer, mesh))


# A full disk


def full_disk(monkeypatch: pytest.MonkeyPatch, is_full: Callable[[int], bool]) -> None:
    original = ocp.CheckpointManager.save

    def save(self, step, **arguments):
        if is_full(step):
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, step, **arguments)

    monkeypatch.setattr(ocp.CheckpointManager, "save", save)


def test_a_failed_save_does_not_end_the_run(tmp_path, monkeypatch, capsys, finished):
    full_disk(monkeypatch, lambda step: step == 4)
    assert train(small(checkpoint_every=2), tmp_path) is None
    out = capsys.readouterr().out
    assert "checkpoint 4 could not be saved" in out
    assert "No space left on device; training goes on" in out
    assert saved(tmp_path) == ["2", "6"]
    assert_equal(read(tmp_path, 6), read(finished, 6))


def test_a_last_state_that_cannot_be_saved(tmp_path, monkeypatch, finished):
    full_disk(monkeypatch, lambda step: step > 2)
    message = "last state, of step 6, could not be saved; the newest checkpoint is step 2$"
    with pytest.raises(TrainingError, match=message):
        train(small(checkpoint_every=2, keep_checkpoints=1), tmp_path)
    assert saved(tmp_path) == ["2"]
    assert_equal(read(tmp_path, 2), read(finished, 2))


def test_a_first_save_that_fails_ends_the_run(tmp_path, monkeypatch):
    full_disk(monkeypatch, lambda step: True)
    with pytest.raises(TrainingError, match=r"^checkpoint 2 could not be saved in .* No space"):
        train(small(checkpoint_every=2), tmp_path)
    assert saved(tmp_path) == []


@pytest.mark.parametrize("largest_file", [0, 3_000, 20_000])
def test_a_save_that_fails_in_the_background(largest_file, run, capsys):
    """The system refuses larger files, as it refuses all on a full disk."""
    state = read(run, 6)
    with Checkpoints(run, keep=3) as checkpoints:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, hard))
        try:
            checkpoints.save(dataclasses.replace(state, step=state.step + 2))
            checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert checkpoints.latest_step() == 6
        assert {"2", "4", "6"} <= set(saved(run))
        out = capsys.readouterr().out
        assert out.startswith("checkpoint 8 could not be saved in ")
        assert "File too large" in out
        checkpoints.save(dataclasses.replace(state, step=state.step + 4))
        checkpoints.wait()
        assert [name for name in saved(run) if name.isdigit()] == ["10", "4", "6"]


def test_metrics_that_cannot_be_written_do_not_end_the_run(tmp_path, monkeypatch, capsys):
    def write(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(loop.MetricsWriter, "write", write)
    assert train(small(), tmp_path) is None
    assert "metrics could not be written: " in capsys.readouterr().out
    assert saved(tmp_path) == ["6"]
