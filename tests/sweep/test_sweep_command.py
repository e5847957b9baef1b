"""The command: a little sweep of real runs, stopped, resumed, and asked for again."""

import base64
import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dit_moe.commands import eval_room
from dit_moe.commands.sweep import main
from dit_moe.config.files import to_dict
from dit_moe.runs.checkpoints import TrainingError
from dit_moe.storage.pictures import read_picture
from dit_moe.sweep import job
from dit_moe.sweep.queue import Queue
from tests.report.test_report import Page
from tests.tiny import DIT_MOE, tiny

ROOT = Path(__file__).parents[2]
CONFIG = """\
import json
from dit_moe.config.files import from_dict


def get_config():
    return from_dict(json.loads({text!r}))
"""
GRID = """
config = "{folder}/tiny.py"
judge = 20
[set]
sample.steps = 2
[[axes]]
field = "seed"
values = [0, 1]
[[axes]]
field = "train.learning_rate"
values = [1e-3, 1e-4]
"""


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A sweep of four runs of which the second was stopped by a signal before its end."""
    folder = tmp_path_factory.mktemp("sweep")
    config = tiny(DIT_MOE, steps=4, validate_every=4)
    (folder / "tiny.py").write_text(CONFIG.format(text=json.dumps(to_dict(config))))
    (folder / "grid.toml").write_text(GRID.format(folder=folder))
    real, trained, codes = job.train, [], []

    def train(config, workdir):
        trained.append(workdir.name)
        return signal.SIGTERM if len(trained) == 2 else real(config, workdir)

    line = ["--grid", str(folder / "grid.toml"), "--output", str(folder / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "train", train)
        codes += [main(line)]
        # What is left goes on, by the folder alone.
        codes += [main(line[2:])]
    return folder / "out", line, trained, codes


NAMES = [f"seed-{seed}_learning-rate-{rate}" for seed in (0, 1) for rate in ("0.001", "0.0001")]


def test_a_stopped_sweep_goes_on_where_it_was(begun):
    _, _, trained, codes = begun
    assert codes == [128 + signal.SIGTERM, 0]
    # What was begun and not ended comes after what was never begun; what is done is not done again.
    assert trained == [NAMES[0], NAMES[1], NAMES[2], NAMES[3], NAMES[1]]


def test_nothing_is_left_to_do(begun, monkeypatch, capsys):
    _, line, _, _ = begun
    monkeypatch.setattr(job, "train", None)
    assert main(line) == 0
    assert "4 done, 0 failed, 0 open" in capsys.readouterr().out


def test_the_table(begun):
    folder, *_ = begun
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert [row["run"] for row in rows] == NAMES
    assert [row["choice_seed"] for row in rows] == ["0", "0", "1", "1"]
    for row in rows:
        assert row["state"] == "done"
        assert 0.1 < float(row["validation_loss"]) < 10
        assert 0.1 < float(row["loss"]) < 10
        assert float(row["frechet"]) > 0
        assert 0 <= float(row["recognised"]) <= 1
        assert 0.25 <= float(row["busiest"]) <= 1
        assert float(row["seconds"]) > 0
        assert row["steps"] == "4"
        assert float(row["sparsity"]) == 0.5
    assert len({row["validation_loss"] for row in rows}) == 4
    quarters = [float(rows[0][f"validation_loss_t{i}"]) for i in range(4)]
    assert min(quarters) < float(rows[0]["validation_loss"]) < max(quarters)
    values = json.loads((folder / "results.json").read_text())
    for row, value in zip(rows, values, strict=True):
        assert float(row["frechet"]) == value["numbers"]["frechet"]


def test_groups_of_seeds(begun, capsys):
    _, line, _, _ = begun
    main(line)
    header, _, first, second, *_ = capsys.readouterr().out.splitlines()
    assert header.startswith(
        "| learning_rate | active parameters | parameters | sparsity | GFLOPs | runs |"
    )
    assert first.startswith("| 0.001 | ")
    assert second.startswith("| 0.0001 | ")
    assert " | 2 | " in first
    assert first.count("±") == 4


def test_a_plan_writes_nothing(begun, tmp_path, capsys):
    _, line, _, _ = begun
    assert main([*line[:2], "--output", str(tmp_path / "new"), "--plan"]) == 0
    assert "4 runs, " in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


def test_a_failed_run_keeps_none_from_its_turn_and_may_be_done_again(tmp_path, begun, monkeypatch):
    grid = begun[1][1]
    line = ["--grid", grid, "--output", str(tmp_path)]
    fails = {NAMES[0]}

    def train(config, workdir):
        if workdir.name in fails:
            raise TrainingError("the loss is no longer finite")
        workdir.mkdir(parents=True)
        (workdir / "metrics.csv").write_text("step,loss,images_per_second\n4,0.5,16\n")

    monkeypatch.setattr(job, "train", train)
    monkeypatch.setattr("dit_moe.commands.sweep._judge", lambda sweep: None)
    assert main(line) == 1
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["state"] for row in rows] == ["failed", "done", "done", "done"]
    assert rows[0]["failure"] == "the loss is no longer finite"
    assert main(line) == 1
    fails.clear()
    assert main([*line, "--retry"]) == 0


REFUSED = {
    "": "has no sweep.json; allowed: a folder that was begun with --grid",
    "--grid=missing.toml": "grid is 'missing.toml', which is not a file",
}


@pytest.mark.parametrize("more", REFUSED)
def test_what_is_refused(tmp_path, capsys, more):
    assert main([f"--output={tmp_path / 'new'}", *more.split()]) == 2
    assert REFUSED[more] in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_all_configs_are_checked_before_the_first_run(tmp_path, begun, monkeypatch, capsys):
    path = tmp_path / "grid.toml"
    text = GRID.format(folder=begun[0].parent)
    path.write_text(text.replace("[1e-3, 1e-4]", "[1e-3]") + '[[axes]]\nfield = "train.freeze"\n'
                    'values = ["", "nothing.*"]\n')  # fmt: skip
    monkeypatch.setattr(job, "train", None)
    assert main(["--grid", str(path), "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: run seed-0_learning-rate-0.001_freeze-nothing.: config.train.")
    assert not (tmp_path / "out").exists()


def test_a_judge_of_a_set_that_is_not_there_is_refused_before_the_first_run(
    tmp_path, begun, capsys
):
    path = tmp_path / "grid.toml"
    sets = '[set]\ndata = {source = "prepared", path = "nowhere"}'
    path.write_text(GRID.format(folder=begun[0].parent).replace("[set]", sets))
    assert main(["--grid", str(path), "--output", str(tmp_path / "out")]) == 2
    assert "nowhere" in capsys.readouterr().err
    path.write_text(path.read_text().replace('"nowhere"', '["a", "b"]'))
    assert main(["--grid", str(path), "--output", str(tmp_path / "out")]) == 2
    assert "grid.judge is given with config.data.path a, b; allowed: one" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", ["--plan", "--report"])
def test_another_grid_is_not_taken_for_that_of_the_folder(tmp_path, begun, capsys, flag):
    """Not with its file, nor where somebody removed what the folder says of its runs."""
    folder, *_ = begun
    path, copy = tmp_path / "grid.toml", tmp_path / "out"
    text = GRID.format(folder=folder.parent).replace("[set]", "[set]\nbudget.steps = 5")
    path.write_text(text)
    line = ["--grid", str(path), "--output", str(copy), flag]
    shutil.copytree(folder / "queue", copy / "queue")
    shutil.copy(folder / "sweep.json", copy)
    assert main(line) == 2
    assert "it differs in train.steps" in capsys.readouterr().err
    (copy / "sweep.json").unlink()
    assert main(line) == 2
    said = capsys.readouterr().err
    assert (
        f"what came of run {NAMES[0]} is of one whose steps is 4, and by the grid it is 5" in said
    )


@pytest.mark.parametrize("name", ["factors", "against"])
def test_some_flags_are_of_a_report(begun, capsys, name):
    assert main([*begun[1], f"--{name}", "total"]) == 2
    assert f"{name} is 'total' without --report" in capsys.readouterr().err


def test_queue_and_runs_lie_in_the_folder(begun):
    folder, *_ = begun
    queue = Queue(folder / "queue", NAMES)
    assert all(queue.outcome(name) for name in NAMES)
    assert sorted(path.name for path in (folder / "runs").iterdir()) == sorted(NAMES)


def test_the_page(begun, capsys):
    folder, line, _, _ = begun
    assert main([*line[2:], "--report", "--against", "0.0001"]) == 0
    said = capsys.readouterr().out
    assert "| less 0.0001 | pairs | validation_loss" in said
    assert "report.html" in said
    page = Page((folder / "report.html").read_text())
    table = page.tables[-1]
    assert [row[0] for row in table[1:]] == NAMES
    assert [row[1] for row in table[1:]] == ["done"] * 4
    (picture,) = [address for address in page.addresses if address.startswith("data:image/png")]
    assert read_picture(base64.b64decode(picture.partition(",")[2])).size == (1000, 400)
    assert page.tags.count("polyline") == 2 * 4  # both losses of four runs
    assert {"validation/loss", "loss", *NAMES} <= {*page.texts}


def test_a_law_that_the_runs_cannot_tell_is_refused(begun, capsys):
    folder, line, _, _ = begun
    page = folder / "report.html"
    page.write_text("before")
    assert main([*line, "--report", "--factors", "total"]) == 2
    said = capsys.readouterr().err
    assert "error: factors has 'total', of which the runs have 1 level(s)" in said
    assert page.read_text() == "before"


def test_eval_is_found_where_it_is(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(eval_room.importlib, "import_module", asked.append)
    eval_room.eval_module("fid")
    (tmp_path / "dit_moe/eval").mkdir(parents=True)
    monkeypatch.setattr(eval_room.dit_moe, "__file__", str(tmp_path / "dit_moe/__init__.py"))
    eval_room.eval_module("fid")
    (tmp_path / "dit_moe/eval").rmdir()  # an `eval` that is found is not of this checkout
    eval_room.eval_module("fid")
    assert asked == ["eval.fid", "dit_moe.eval.fid", "dit_moe.eval.fid"]


@pytest.mark.slow
def test_runs_whose_workers_are_killed_end_as_others_do(tmp_path, begun):
    """Two workers, five kills: the same losses to the bit, and each run once."""
    reference, *_ = begun
    folder = tmp_path / "out"
    text = (reference.parent / "grid.toml").read_text()
    grid = tmp_path / "grid.toml"
    grid.write_text(
        text.replace("judge = 20", "").replace("[set]", "[set]\ntrain.checkpoint_every = 1")
    )

    def start() -> subprocess.Popen:
        line = ["-m", "dit_moe.sweep", "--grid", str(grid), "--output", str(folder)]
        return subprocess.Popen([sys.executable, *line], cwd=ROOT)

    workers = [start(), start()]
    for kill in range(5):
        time.sleep(12)
        workers[kill % 2].kill()
        workers[kill % 2].wait()
        workers[kill % 2] = start()
    assert [worker.wait() for worker in workers] == [0, 0]
    found, expected = (
        {row["run"]: row for row in csv.DictReader((path / "results.csv").open())}
        for path in (folder, reference)
    )
    assert [*found] == NAMES
    for name in NAMES:
        assert found[name]["state"] == "done"
        assert found[name]["validation_loss"] == expected[name]["validation_loss"]
