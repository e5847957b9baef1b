"""Samples judged while a run trains: the curve, the checkpoint that is kept, and what it costs."""

import csv
import dataclasses
import json
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.commands.eval_room import eval_module
from dit_moe.commands.train import main
from dit_moe.config import Config, ConfigError, EvaluateConfig, SampleConfig
from dit_moe.config.files import override
from dit_moe.devices.mesh import build_mesh
from dit_moe.runs.checkpoints import Checkpoints
from dit_moe.runs.judged import Judgement, best, read_judgements, write_judgement
from dit_moe.runs.loading import load_run
from dit_moe.runs.state import init_state
from dit_moe.training.judging import open_judging
from dit_moe.training.loop import train
from eval.training_judge import TrainingJudge
from tests.tiny import tiny
from tests.training.event_files import scalars
from tests.training.test_training import final_state, interrupt_at

FID = "judged/digits/fid"


def judged(**settings: object) -> Config:
    given = {"every": 2, "num_samples": 24, "reference": "digits", "features": "digits"}
    evaluate = EvaluateConfig(**{**given, "metrics": ("fid", "pr"), "batch_size": 16, **settings})
    config = tiny(None, steps=6, log_every=3, keep_checkpoints=1, evaluate=evaluate)
    return dataclasses.replace(config, sample=SampleConfig(steps=2))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run to its end."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    assert train(judged(), workdir, build_judge=TrainingJudge) is None
    return workdir


def curve(workdir: Path) -> dict[int, float]:
    with (workdir / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {int(row["step"]): float(row[FID]) for row in rows if row[FID]}


def test_the_curve_is_in_every_log(run):
    found = read_judgements(run)
    assert [known.step for known in found] == [2, 4, 6]
    names = [FID, "judged/digits/pr_precision", "judged/digits/pr_recall"]
    for known in found:
        assert list(known.values) == names
        assert not known.highest
    expected = {known.step: known.values[FID] for known in found}
    assert curve(run) == pytest.approx(expected, rel=1e-5)
    assert scalars(run, FID) == pytest.approx(expected)
    # The rows of training, whole as before.
    with (run / "metrics.csv").open() as file:
        rows = {row["step"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["2", "3", "4", "6"]
    assert all(row["loss"] for row in rows.values())


def test_the_best_is_kept_and_found(run):
    values = {known.step: known.first[1] for known in read_judgements(run)}
    expected = min(values, key=values.__getitem__)
    assert {str(expected), "6"} <= {path.name for path in (run / "checkpoints").iterdir()}
    with Checkpoints(run) as checkpoints:
        assert checkpoints.find("newest") == 6
        with pytest.raises(ConfigError, match=r"^checkpoint is '5', which .*; allowed: newest, be"):
            checkpoints.find("5")
    assert load_run(run, checkpoint="best").step == expected
    assert load_run(run, checkpoint="6").step == 6


def test_no_rotation_removes_the_best(tmp_path):
    config = tiny(None)
    state = init_state(config.model, config.train, build_mesh(config.mesh), 0)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, value in enumerate([5.0, 1.0, 4.0, 3.0, 2.0], start=1):
            checkpoints.save(dataclasses.replace(state, step=jnp.int32(step)))
            write_judgement(tmp_path, Judgement(step, {"x": value}, False, {}))
        checkpoints.wait()
        assert checkpoints.find("best") == 2
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"2", "4", "5"}


def test_training_learns_the_same_without_it(run, tmp_path):
    config = judged(every=0)
    assert train(config, tmp_path) is None
    expected, actual = final_state(config, tmp_path), final_state(config, run)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert "judged" not in (tmp_path / "metrics.csv").read_text()


def test_an_interrupted_run_has_the_same_curve(run, tmp_path, monkeypatch, capsys):
    """Stopped between judgements, then while one is made, of which nothing is lost."""
    config = judged()
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert train(config, tmp_path, build_judge=TrainingJudge) == signal.SIGINT
    assert [known.step for known in read_judgements(tmp_path)] == [2]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        assert train(config, tmp_path, build_judge=TrainingJudge) == signal.SIGINT
    assert "Step 4 is not judged yet; the same command does it first." in capsys.readouterr().out
    assert [known.step for known in read_judgements(tmp_path)] == [2]
    assert train(config, tmp_path, build_judge=TrainingJudge) is None
    assert read_judgements(tmp_path) == read_judgements(run)
    assert curve(tmp_path) == curve(run)
    # Done once more after its end, it judges nothing again.
    monkeypatch.setattr(TrainingJudge, "__call__", None)
    assert train(config, tmp_path, build_judge=TrainingJudge) is None


def test_eval_finds_the_same(run, tmp_path):
    what = "--checkpoint best --num_samples 24 --batch_size 16 --reference digits"
    where = ["--workdir", str(run), "--output", str(tmp_path / "fid.json")]
    arguments = [*f"{what} --features digits --metrics fid,pr".split(), *where]
    assert eval_module("fid").main(arguments) == 0
    result = json.loads((tmp_path / "fid.json").read_text())
    known = best(read_judgements(run), range(7))
    assert known is not None
    assert result["samples"]["drawn"]["step"] == known.step
    # Pixels may round otherwise on other devices.
    assert result["metrics"]["fid"]["value"] == pytest.approx(known.values[FID], rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reference": "no/such"}, "no/such does not exist"),
        ({"metrics": ("nearest",)}, "metrics begins with 'nearest'.* allowed first: fid, sfid"),
        ({"metrics": ("kidd",)}, "--metrics holds 'kidd'"),
        ({"features": "patches"}, "features 'patches' need"),
        ({"features": "inception"}, "--weights is missing"),
        ({"features": "eyes"}, "features is 'eyes'; allowed: inception, dinov2, digits, patches"),
    ],
)
def test_what_cannot_be_judged_is_told_at_the_start(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=rf"^config\.train\.evaluate cannot be done: .*{message}"):
        train(judged(**settings), tmp_path / "run", build_judge=TrainingJudge)
    assert not (tmp_path / "run" / "config.json").exists()


def test_it_needs_a_judge_a_reference_and_one_process(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"every is 2, but nothing judges"):
        train(judged(), tmp_path)
    with pytest.raises(ConfigError, match=r"every is 2 without reference; allowed: a set of"):
        override(judged(), ["--config.train.evaluate.reference=none"])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"every is 2, but 2 processes train; .*--follow"):
        open_judging(judged(), (), None, tmp_path, TrainingJudge, lambda: False)


def test_the_best_of_judgements(tmp_path):
    def told(step: int, value: float, highest: bool = False, by: str = "a") -> Judgement:
        return Judgement(step, {"x": value, "y": -value}, highest, {"features": by})

    assert best([], [1]) is None
    falling = [told(1, 3.0), told(2, 1.0), told(3, 1.0), told(4, 2.0)]
    assert best(falling, range(9)).step == 2
    assert best(falling, [1, 4]).step == 4
    assert best(falling, [7]) is None
    assert best([told(1, 3.0, True), told(2, 1.0, True)], [1, 2]).step == 1
    # Of other features, a smaller number is no better.
    assert best([told(1, 0.1, by="b"), *falling[1:]], range(9)).step == 2
    for judgement in (*falling, told(2, 5.0)):  # redone from 2 on
        write_judgement(tmp_path, judgement)
    assert [(j.step, j.first) for j in read_judgements(tmp_path)] == [(1, ("x", 3)), (2, ("x", 5))]
    with (tmp_path / "judged.jsonl").open("a") as file:
        file.write('{"step": 3')
    with pytest.raises(ConfigError, match=r"judged\.jsonl cannot be read: line 3: "):
        Checkpoints(tmp_path, keep=1)


def test_the_command_brings_the_judge(tmp_path, capsys):
    flags = ["every=5", "reference=no/such", "features=digits"]
    arguments = ["--config", "configs/digits.py:dit", "--workdir", str(tmp_path / "run")]
    assert main([*arguments, *(f"--config.train.evaluate.{flag}" for flag in flags)]) == 2
    assert "config.train.evaluate cannot be done: no/such does not" in capsys.readouterr().err
