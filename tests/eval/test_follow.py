"""Checkpoints judged as they appear, beside the process that trains: eval.fid --follow."""

import dataclasses
import json
import shutil

import pytest
from PIL import Image

from dit_moe.config import ConfigError, SampleConfig
from dit_moe.report.results import find_results
from dit_moe.training.loop import train
from eval import fid, follow
from eval import judge as judging
from tests.tiny import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with checkpoints of steps 2 and 4, its last."""
    workdir = tmp_path_factory.mktemp("run")
    config = tiny(None, steps=4, checkpoint_every=2, learning_rate=0.05)
    train(dataclasses.replace(config, sample=SampleConfig(steps=2)), workdir)
    return workdir


@pytest.fixture
def command(tmp_path):
    """The command about the run in tmp_path / "run"."""

    def run(output="follow.json", **settings) -> int:
        values = {"reference": "digits", "features": "digits", "metrics": "fid,is"}
        values |= {"num_samples": 16, "batch_size": 16, "cache": tmp_path / "cache"}
        values |= {"workdir": tmp_path / "run", "output": tmp_path / output, **settings}
        return fid.main(["--follow", *(f"--{name}={value}" for name, value in values.items())])

    return run


def stop(*_, **__):
    raise KeyboardInterrupt


def results(path):
    return json.loads(path.read_text())["by_step"]


def test_a_run_is_followed_to_its_last_step(trained, tmp_path, command, monkeypatch, capsys):
    workdir, output = tmp_path / "run", tmp_path / "follow.json"
    shutil.copytree(trained, workdir)
    shutil.move(workdir / "checkpoints" / "4", tmp_path / "later")
    monkeypatch.setattr(follow, "wait", stop)
    assert command() == 130
    found = capsys.readouterr()
    assert "Waits for checkpoints of " in found.out
    assert "after step 2, to its last, 4. Ctrl-C stops this alone; the same command" in found.out
    assert "Give the same command again to go on." in found.err
    (first,) = results(output)
    assert first["samples"]["drawn"]["step"] == 2

    def appear():
        shutil.move(tmp_path / "later", workdir / "checkpoints" / "4")

    original, judged = judging.evaluate, []

    def evaluate(images, *arguments, **settings):
        judged.append(images.path)
        return original(images, *arguments, **settings)

    monkeypatch.setattr(follow, "wait", appear)
    monkeypatch.setattr(judging, "evaluate", evaluate)
    assert command() == 0
    assert len(judged) == 1
    again, second = results(output)
    assert again == first
    assert second["samples"]["drawn"]["step"] == 4
    lines = capsys.readouterr().out.splitlines()
    values = {r["samples"]["drawn"]["step"]: r["metrics"]["fid"]["value"] for r in (first, second)}
    for step, value in values.items():
        assert any(line.split()[:2] == [str(step), f"{value:.5g}"] for line in lines)
    lowest = min(values, key=values.__getitem__)
    assert f"The lowest Fréchet distance (digits) is that of step {lowest}." in lines
    with Image.open(tmp_path / "follow.png") as picture:
        assert len(picture.convert("L").getcolors()) > 10
    # What is done is not done again, and nothing else is taken for it.
    monkeypatch.setattr(judging, "evaluate", None)
    assert command() == 0
    for settings, message in (
        ({"seed": 3}, "follow.json, whose results were judged otherwise: they differ in seed;"),
        ({"metrics": "fid"}, "they differ in metrics;"),
    ):
        assert command(**settings) == 2
        assert message in capsys.readouterr().err
    content = json.loads(output.read_text())
    content["checkpoints"]["2"] = "of before"
    (tmp_path / "before.json").write_text(json.dumps(content))
    assert command("before.json") == 2
    assert "result of step 2 is of other weights than the checkpoint" in capsys.readouterr().err
    for content in ("{}", "[]", '{"by_step": [1], "checkpoints": {}, "judged_by": {}}'):
        (tmp_path / "other.json").write_text(content)
        assert command("other.json") == 2
        message = "other.json, which holds something else than results by step"
        assert message in capsys.readouterr().err
    (table,) = find_results(tmp_path / "run", [output])
    assert table.head[:2] == ("step", "fid value")
    assert [row[0] for row in table.rows] == ["2", "4"]


def test_a_checkpoint_that_is_removed_meanwhile(trained, tmp_path, command, monkeypatch, capsys):
    workdir = shutil.copytree(trained, tmp_path / "run")
    original = judging.open_run

    def open_run(*arguments, checkpoint, **settings):
        if checkpoint == "2":
            shutil.rmtree(workdir / "checkpoints" / "2")
            raise ConfigError("it is gone")
        return original(*arguments, checkpoint=checkpoint, **settings)

    monkeypatch.setattr(judging, "open_run", open_run)
    assert command() == 0
    assert "Step 2 was removed by the run before it could be judged." in capsys.readouterr().out
    (only,) = results(tmp_path / "follow.json")
    assert only["samples"]["drawn"]["step"] == 4


@pytest.mark.parametrize("flag", ["checkpoint=2", "save=out", "guidance_scale=1,2"])
def test_flags_that_do_not_go_with_it(command, flag, capsys):
    with pytest.raises(SystemExit) as stopped:
        command(**dict([flag.split("=")]))
    assert stopped.value.code == 2
    assert f"--{flag.split('=')[0]} " in capsys.readouterr().err.splitlines()[-1]
