"""Bad numbers, damaged checkpoints and a full disk: no run is lost."""

import csv
import dataclasses
import errno
import functools
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from dit_moe.config import Config, ConfigError, MeshConfig
from dit_moe.data.array_records import RecordError
from dit_moe.data.pipeline import Batch
from dit_moe.devices.mesh import batch_sharding, build_mesh, replicated
from dit_moe.runs.checkpoints import Checkpoints, TrainingError
from dit_moe.runs.loading import load_run
from dit_moe.runs.state import TrainState, abstract_state, init_state
from dit_moe.training import session
from dit_moe.training.health import Skips
from dit_moe.training.loop import train
from dit_moe.training.step import SKIPPED, SKIPPED_FOR_DATA, build_step
from tests.lost_output import LostOutput
from tests.tiny import tiny


def small(**train: object) -> Config:
    """Without experts or sharded parameters, whose compilation takes long."""
    config = tiny(None, accumulation=2, warmup_steps=4, **train)
    return dataclasses.replace(config, mesh=MeshConfig(data=8))


@pytest.fixture(scope="module", autouse=True)
def one_step() -> Iterator[None]:
    """All runs here share one training step, traced and compiled once."""
    config = small()
    step = build_step(config.model, config.objective, config.train, config.seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "build_step", lambda *parts: step)
        yield


def like(config: Config) -> TrainState:
    return abstract_state(config.model, config.train, build_mesh(config.mesh))


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


def test_a_bad_update_changes_nothing_but_the_step():
    config = small()
    mesh = build_mesh(config.mesh)
    x_NxHxWxC = jax.random.normal(jax.random.key(5), (config.train.batch_size, 8, 8, 1))
    y_N = jnp.arange(config.train.batch_size, dtype=jnp.int32) % 10
    with jax.set_mesh(mesh):
        state = init_state(config.model, config.train, mesh, config.seed)
        # Large activations before an output layer of zeros: a far larger gradient than loss.
        state.parameters["modulation.bias"] += 1e10
        step = jax.jit(  # as `train` does, so that it is compiled for both
            session.build_step(config.model, config.objective, config.train, config.seed),
            donate_argnums=0,
            out_shardings=(jax.tree.map(lambda a: a.sharding, state), replicated(mesh)),
        )

        def update(state: TrainState, factor: float):
            x = x_NxHxWxC.at[0].multiply(factor)
            copy = jax.tree.map(jnp.copy, state)
            return step(copy, *jax.device_put((x, y_N), batch_sharding(mesh)))

        state, metrics = update(state, 1)
        assert metrics["skipped"] == 0
        assert metrics["learning_rate"] == 0
        for factor, loss_is_finite, why in (
            (np.nan, False, SKIPPED_FOR_DATA),
            (1e12, True, SKIPPED),
            (1e30, False, SKIPPED),
        ):
            after, metrics = update(state, factor)
            assert np.isfinite(metrics["loss"]) == loss_is_finite
            assert not np.isfinite(metrics["gradient_norm"])
            assert metrics["skipped"] == why
            assert after.step == state.step + 1
            assert_equal(after, dataclasses.replace(state, step=after.step))
            state = after
        then, metrics = update(state, 1)
        assert metrics["skipped"] == 0
        # The second update that is made, so the second learning rate of the warm-up.
        np.testing.assert_allclose(
            metrics["learning_rate"], config.train.learning_rate / 4, rtol=1e-6
        )
        before, after = jax.device_get((state.parameters, then.parameters))
        assert any(np.any(before[path] != after[path]) for path in before)


def on_batch(monkeypatch: pytest.MonkeyPatch, change: Callable[[int, Batch], Batch]) -> None:
    """Puts a change of every batch, by its step, between the data and the training."""
    original = session.device_batches

    def batches(sources, data, batch_size, seed, first_step, sharding):
        stream = original(sources, data, batch_size, seed, first_step, sharding)
        for number, item in enumerate(stream, start=first_step + 1):
            yield change(number, item)

    monkeypatch.setattr(session, "device_batches", batches)


def spoil(
    monkeypatch: pytest.MonkeyPatch, is_bad: Callable[[int], bool], factor: float = np.nan
) -> None:
    on_batch(
        monkeypatch,
        lambda number, item: item._replace(x=item.x * factor) if is_bad(number) else item,
    )


def test_skipped_updates_are_told_and_left_out_of_the_means(tmp_path, monkeypatch, capsys):
    spoil(monkeypatch, lambda number: number in (3, 4))
    train(small(log_every=6), tmp_path / "a")
    out = capsys.readouterr().out
    assert "update 3, 4 skipped: the data are not finite" in out
    assert "2 of 6 updates were skipped" in out
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
        "^3 updates in a row were skipped up to step 6, because the data are not finite; "
        "the last good checkpoint is step 3: look at the data set"
    )
    with pytest.raises(TrainingError, match=message):
        train(small(steps=20, checkpoint_every=1, keep_checkpoints=2, max_skipped=3), tmp_path)
    assert saved(tmp_path) == ["1", "3"]


def test_a_run_without_any_update_is_not_done(tmp_path, monkeypatch):
    spoil(monkeypatch, lambda number: True, factor=1e30)
    message = (
        r"^none of the 6 updates could be made, because loss is inf: try a smaller learning_rate"
    )
    with pytest.raises(TrainingError, match=message):
        train(small(checkpoint_every=2, max_skipped=100), tmp_path)
    assert saved(tmp_path) == []


def test_a_row_of_skipped_updates_may_span_windows():
    skips = Skips(3, print)
    skips.report(2, [None, "loss is nan"], None)
    skips.report(4, ["loss is nan", None], None)
    skips.report(6, ["loss is nan", "loss is inf"], None)
    with pytest.raises(TrainingError, match=r"^3 updates .* step 7, .* checkpoint is none"):
        skips.report(7, ["loss is nan"], None)
    with pytest.raises(TrainingError, match=r"^3 updates .* step 5"):  # though it recovered
        Skips(3, print).report(5, [None, *["loss is nan"] * 3, None], 1)


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


def damage(checkpoint: Path) -> None:
    (checkpoint / "ema" / "manifest.ocdbt").unlink()


def test_a_run_goes_on_from_the_checkpoint_before(run, finished, capsys):
    damage(run / "checkpoints" / "6")
    train(small(checkpoint_every=2), run)
    out = capsys.readouterr().out
    assert f"it is now {run}/checkpoints/damaged-6." in out
    assert "from step 4" in out
    assert_equal(read(run, 6), read(finished, 6))
    assert saved(run) == ["2", "4", "6", "damaged-6"]
    assert [row["step"] for row in rows(run)] == ["2", "4", "6"]


def test_a_run_without_a_good_checkpoint_is_left_alone(run):
    for step in (2, 4, 6):
        damage(run / "checkpoints" / str(step))
    remains = contents(run / "checkpoints")
    with pytest.raises(ConfigError, match=r"^checkpoint 6 in .* nor can 4, 2 be read$"):
        train(small(), run)
    assert contents(run / "checkpoints") == remains


def test_sampling_from_a_damaged_checkpoint(run, capfd):
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

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", restore)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Out of memory"):
        train(small(), run)
    assert saved(run) == ["2", "4", "6"]


def test_resuming_makes_no_fresh_state(run, monkeypatch):
    monkeypatch.delattr(session, "init_state")
    assert train(small(), run) is None


def test_the_abstract_state_is_the_state_without_its_values():
    config = small()
    mesh = build_mesh(MeshConfig(data=2, fsdp=4))
    state = init_state(config.model, config.train, mesh, config.seed)

    def check(real: jax.Array, abstract: jax.ShapeDtypeStruct) -> None:
        assert (real.shape, real.dtype) == (abstract.shape, abstract.dtype)
        assert abstract.sharding is not None
        assert real.sharding.is_equivalent_to(abstract.sharding, real.ndim)

    jax.tree.map(check, state, abstract_state(config.model, config.train, mesh))


# What is taken away


def test_a_damaged_record_costs_no_step_that_was_done(tmp_path, monkeypatch, finished):
    def fail(number: int, item: Batch) -> Batch:
        if number == 4:
            raise RecordError("record 7 of a/file cannot be read")
        return item

    with monkeypatch.context() as patch:
        on_batch(patch, fail)
        for _ in range(2):  # at the first step of a start, there is nothing new to save
            with pytest.raises(TrainingError, match=r"^record 7 of a/file cannot be read$"):
                train(small(), tmp_path)
            assert saved(tmp_path) == ["3"]
    train(small(), tmp_path)
    assert_equal(read(tmp_path, 6), read(finished, 6))


def test_a_config_that_was_removed_meanwhile_is_written_again(tmp_path, monkeypatch, capsys):
    def remove(number: int, item: Batch) -> Batch:
        if number == 4:
            (tmp_path / "config.json").unlink()
        return item

    on_batch(monkeypatch, remove)
    train(small(), tmp_path)
    assert "config.json had gone from" in capsys.readouterr().out
    assert load_run(tmp_path).config == small()


@pytest.mark.parametrize("last", [False, True])
def test_a_workdir_that_was_removed_meanwhile(last, tmp_path, monkeypatch):
    """Before the last save it is made again; after it, the run is not said to be done."""
    workdir = tmp_path / "run"
    remove = functools.partial(shutil.rmtree, workdir, ignore_errors=True)
    if last:
        wait = session.Checkpoints.wait
        monkeypatch.setattr(session.Checkpoints, "wait", lambda self: (wait(self), remove())[0])
        with pytest.raises(TrainingError, match=r"^the last state, of step 6, could not be saved"):
            train(small(), workdir)
    else:
        on_batch(monkeypatch, lambda number, item: (number == 4 and remove(), item)[1])
        train(small(), workdir)
        assert load_run(workdir).step == 6


# A full disk


def full_disk(monkeypatch: pytest.MonkeyPatch, is_full: Callable[[int], bool]) -> None:
    original = ocp.CheckpointManager.save

    def save(self, step, **arguments):
        if is_full(step):
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, step, **arguments)

    monkeypatch.setattr(ocp.CheckpointManager, "save", save)


def test_failed_writes_do_not_end_the_run(tmp_path, monkeypatch, capsys, finished):
    full_disk(monkeypatch, lambda step: step == 4)

    def write(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(session.MetricsWriter, "write", write)
    assert train(small(checkpoint_every=2), tmp_path) is None
    out = capsys.readouterr().out
    assert "metrics could not be written: " in out
    assert "checkpoint 4 could not be saved" in out
    assert "No space left on device; training goes on" in out
    assert saved(tmp_path) == ["2", "6"]
    assert_equal(read(tmp_path, 6), read(finished, 6))


def test_a_terminal_that_is_gone_ends_no_run(tmp_path, monkeypatch):
    for name in ("stderr", "stdout"):
        monkeypatch.setattr(sys, name, LostOutput(BrokenPipeError()))
    assert train(small(), tmp_path) is None
    assert saved(tmp_path) == ["6"]


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
