"""Warnings of a run, and what else it writes when asked."""

import sys
import time
import types

import pytest
from PIL import Image

from dit_moe.config import ConfigError
from dit_moe.runs.checkpoints import TrainingError
from dit_moe.training.health import BAD_DATA, Skips, Warnings
from dit_moe.training.logging import MetricsWriter
from tests.training.event_files import scalars


def lines(losses: list[float], num_experts: int = 0, loads=()) -> list[str]:
    said: list[str] = []
    warnings = Warnings([num_experts] * 3, said.append)
    for number, loss in enumerate(losses, start=1):
        scalars = {"loss": loss}
        if loads:
            scalars |= {
                f"moe/load/layer02/expert{e:02d}": load
                for e, load in enumerate(loads[(number - 1) % len(loads)])
            }
        warnings.check(number, scalars)
    return said


def test_a_jump_of_the_loss():
    assert lines([1.0] * 5 + [1.4]) == []
    assert lines([1.0] * 4 + [9.0]) == []  # too early to know what is usual
    (line,) = lines([1.0] * 6 + [1.6] + [1.0])
    assert line == "step 7: loss 1.6 jumped above 1.5 times its median of the last 6 lines (1)"
    # Lines of skipped updates alone are not usual.
    (line,) = lines([1.0] * 4 + [2.0] + [float("nan")] * 5 + [1.6])
    assert line == "step 11: loss 1.6 jumped above 1.5 times its median of the last 5 lines (1)"
    # A new level becomes usual after half the history.
    assert len(lines([1.0] * 20 + [2.0] * 20)) == 10


def test_experts_without_work():
    dead = [[0.5, 0.0, 0.5, 0.0]]  # expert 3 is the unconditional one
    (line,) = lines([1.0] * 10, num_experts=3, loads=dead)
    assert line == "step 3: no token in the last 3 lines went to layer 2 expert 1"
    revived = [[0.5, 0.0, 0.5]] * 2 + [[0.5, 0.1, 0.4]]
    assert lines([1.0] * 10, num_experts=3, loads=revived) == []


def validated(training: list[float], heldout: list[float]) -> list[str]:
    """Two log lines before each validation."""
    said: list[str] = []
    warnings = Warnings([], said.append)
    for i, (loss, value) in enumerate(zip(training, heldout, strict=True)):
        warnings.check(20 * i + 10, {"loss": loss, "validation/loss": float("nan")})
        warnings.check(20 * i + 20, {"loss": loss, "validation/loss": value})
    return said


def test_a_loss_on_heldout_data_that_rises_for_long():
    falling = [1.0 - 0.05 * i for i in range(10)]
    rising = [1.0, 0.8] + [0.85] * 8
    (line,) = validated(falling, rising)
    assert line.startswith(
        "step 140: the loss on held-out data has been above its best (0.8 at step 40) for 5 "
        "validations, while the training loss falls: it is 0.85 now."
    )
    assert validated(falling[:6], rising[:6]) == []  # not for long
    assert validated([1.0] * 10, rising) == []  # training does not fall
    assert validated(falling, [1.0, 0.8] + [0.81] * 8) == []  # as good as its best
    # In a row: a good one in between begins anew, and a new best another count.
    assert validated(falling, [1.0, 0.8] + [0.85] * 4 + [0.8] + [0.85] * 3) == []
    # A validation before any finite loss compares with nothing.
    assert validated([float("nan")] * 10, rising) == []


def test_skips_say_which_steps_and_why():
    said: list[str] = []
    Skips(5, said.append).report(
        1002, [None, "loss is nan", "gradient_norm is inf", "loss is nan"], 900
    )
    assert said == [
        "update 1,000, 1,002 skipped: loss is nan",
        "update 1,001 skipped: gradient_norm is inf",
    ]


def test_data_that_are_not_finite_are_no_matter_of_the_learning_rate():
    for reasons, advice in (
        ([BAD_DATA] * 2, "look at the data set"),
        ([BAD_DATA, "loss is inf"], "try a smaller learning_rate"),
    ):
        with pytest.raises(TrainingError, match=f"^2 updates .*{advice}"):
            Skips(2, print).report(2, reasons, None)


def test_a_run_tells_at_its_end_how_many_updates_it_made():
    said: list[str] = []
    skips = Skips(5, said.append)
    skips.conclude(1000, 1000)
    assert said == []
    skips.conclude(1000, 998)
    assert said == ["2 of 1,000 updates were skipped"]
    skips.report(3, [BAD_DATA, "loss is inf", BAD_DATA], None)
    message = "^none of the 3 updates could be made, because loss is inf and the data are not"
    with pytest.raises(TrainingError, match=message):
        skips.conclude(3, 0)


def test_wandb_receives_the_metrics_of_one_run(tmp_path, monkeypatch):
    inits, logged = [], []
    run = types.SimpleNamespace(
        log=lambda values, step: logged.append((step, values)), finish=lambda: None
    )
    module = types.ModuleType("wandb")
    module.init = lambda **arguments: (inits.append(arguments), run)[1]
    module.Image = lambda picture: ("picture", picture.size)
    monkeypatch.setitem(sys.modules, "wandb", module)
    (tmp_path / "config.json").write_text('{"name": "x"}')
    for first_step in (0, 1):
        with MetricsWriter(tmp_path, first_step, "project") as writer:
            writer.write(first_step + 1, {"loss": 0.5, "images_per_second": float("nan")})
            writer.show(first_step + 1, Image.new("RGB", (4, 3)))
    grid = {"samples": ("picture", (4, 3))}
    assert logged == [(1, {"loss": 0.5}), (1, grid), (2, {"loss": 0.5}), (2, grid)]
    assert inits[0]["project"] == "project"
    assert inits[0]["config"] == {"name": "x"}
    assert inits[0]["id"] == inits[1]["id"]
    assert inits[0]["resume"] == "allow"


def test_two_starts_within_a_second_keep_what_each_wrote(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1e9)
    for step in (1, 2):
        with MetricsWriter(tmp_path, step - 1) as writer:
            writer.write(step, {"loss": 0.5})
    assert scalars(tmp_path, "loss") == {1: 0.5, 2: 0.5}


def test_wandb_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"^--wandb is 'p', but wandb is not installed: pip"):
        MetricsWriter(tmp_path, 0, "p")


def raises(error: Exception):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("def init(**_): raise RuntimeError('No API key configured.')", "No API key configured"),
        ("raise ImportError('cannot import name x from wandb.proto')", "cannot import name x"),
        ("import a_package_that_wandb_wants", "No module named 'a_package_that_wandb_wants'"),
    ],
)
def test_wandb_that_does_not_start(tmp_path, monkeypatch, code, why):
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    (tmp_path / "wandb.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"^--wandb is 'p', but wandb does not start") as raised:
        MetricsWriter(tmp_path, 0, "p")
    assert why in str(raised.value)
    sys.modules.pop("wandb", None)


def test_wandb_that_fails_later_costs_no_training(tmp_path, monkeypatch, capsys):
    run = types.SimpleNamespace(log=raises(ValueError("gone")), finish=raises(ValueError("gone")))
    module = types.ModuleType("wandb")
    module.init, module.Image = lambda **_: run, lambda picture: picture
    monkeypatch.setitem(sys.modules, "wandb", module)
    (tmp_path / "config.json").write_text("{}")
    with MetricsWriter(tmp_path, 0, "p") as writer, pytest.raises(OSError, match="W&B: gone"):
        writer.write(1, {"loss": 0.5})
    with MetricsWriter(tmp_path, 1, "p") as writer, pytest.raises(OSError, match="W&B: gone"):
        writer.show(1, Image.new("RGB", (4, 3)))
    assert (tmp_path / "metrics.csv").read_text() == "step,loss\n1,0.5\n"
    assert capsys.readouterr().out == "W&B could not end its run: gone\n" * 2
