"""A run that goes on with other settings, on request."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from dit_moe.commands import train as command
from dit_moe.config import ConfigError
from dit_moe.config.files import load_json, to_json
from dit_moe.devices.mesh import build_mesh
from dit_moe.runs import folder
from dit_moe.runs.checkpoints import Checkpoints
from dit_moe.runs.folder import write_config
from dit_moe.runs.history import OVERRIDABLE
from dit_moe.runs.state import abstract_state
from dit_moe.training.loop import train
from tests.tiny import tiny


def history(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "history.jsonl").read_text().splitlines()]


@pytest.fixture
def begun(tmp_path) -> Path:
    """A run folder as it stands when it goes on, but for its checkpoints."""
    write_config(tiny(None), epath.Path(tmp_path), resuming=False)
    return tmp_path


def go_on(workdir: Path, *names: str, step: int = 4, **settings: object) -> None:
    write_config(
        tiny(None, **settings), epath.Path(workdir), resuming=True, override=names, step=step
    )


def test_a_run_goes_on_with_another_batch_and_rate(tmp_path, capsys):
    assert train(tiny(None, steps=2), tmp_path) is None
    changed = tiny(None, steps=3, batch_size=8, learning_rate=1e-4)
    assert train(changed, tmp_path, override_resume=("learning_rate", "batch_size")) is None
    assert "train.batch_size (was 16, is 8)" in capsys.readouterr().out
    fields = {"steps": [2, 3], "batch_size": [16, 8], "learning_rate": [1e-3, 1e-4]}
    expected = {f"train.{name}": values for name, values in fields.items()}
    assert history(tmp_path) == [{"step": 2, "changed": expected}]
    assert load_json(tmp_path / "config.json") == changed
    like = abstract_state(changed.model, changed.train, build_mesh(changed.mesh))
    states = []
    with Checkpoints(tmp_path) as checkpoints:
        for step in (2, 3):
            states.append(checkpoints.restore(step, like).parameters)
    moved = [np.abs(b - a).max() for a, b in zip(*map(jax.tree.leaves, states), strict=True)]
    # A step of Adam is about the learning rate.
    assert 0.5e-4 < max(moved) < 2e-4


def test_what_is_not_named_is_refused(begun):
    with pytest.raises(ConfigError, match=r"differs in train\.beta2 \(was 0\.999, is 0\.9\): use"):
        go_on(begun, "learning_rate", learning_rate=1.0, beta2=0.9)
    assert not (begun / "history.jsonl").exists()
    assert load_json(begun / "config.json") == tiny(None)


def test_the_same_again_is_no_change(begun):
    go_on(begun, "train.learning_rate", learning_rate=1.0)
    go_on(begun, "learning_rate", learning_rate=1.0, step=5)
    go_on(begun, learning_rate=1.0, log_every=7)  # which changes nothing that is learned
    assert [line["step"] for line in history(begun)] == [4]
    go_on(begun, "learning_rate", learning_rate=2.0, step=6)
    assert [line["step"] for line in history(begun)] == [4, 6]


def test_a_kill_between_note_and_config_notes_it_once(begun, monkeypatch):
    def killed(config):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folder, "to_json", killed)
        with pytest.raises(KeyboardInterrupt):
            go_on(begun, "learning_rate", learning_rate=1.0)
    assert (begun / "config.json").read_text() == to_json(tiny(None))
    go_on(begun, "learning_rate", learning_rate=1.0)
    assert len(history(begun)) == 1


def test_more_steps_are_noted_and_need_no_name(begun):
    go_on(begun, steps=20)
    assert history(begun) == [{"step": 4, "changed": {"train.steps": [6, 20]}}]


def test_a_falling_rate_is_prolonged_by_name(tmp_path):
    write_config(tiny(None, schedule="cosine"), epath.Path(tmp_path), resuming=False)
    with pytest.raises(ConfigError, match=r"differs in train\.steps \(was 6, is 20\)"):
        go_on(tmp_path, schedule="cosine", steps=20)
    go_on(tmp_path, "steps", schedule="cosine", steps=20)
    assert load_json(tmp_path / "config.json").train.steps == 20


def test_every_field_that_may_change_leaves_the_state_as_it_is():
    """All others of `train` are free, or of the state: its shape, or what is told of it."""
    values = {"schedule": "cosine", "accumulation": 2, "batch_size": 8, "steps": 9}
    values |= {"warmup_steps": 3} | dict.fromkeys(("beta1", "beta2"), 0.5)
    mesh = build_mesh(tiny(None).mesh)
    expected = abstract_state(tiny(None).model, tiny(None).train, mesh)
    for name in OVERRIDABLE:
        changed = tiny(None, **{name: values.get(name, 0.25)})
        assert changed != tiny(None)
        assert abstract_state(changed.model, changed.train, mesh) == expected


@pytest.mark.parametrize("names", ["ema_decay", "learning_rate,lr", "model.width", "train."])
def test_names_that_may_not_change(names, tmp_path, capsys):
    flags = ["--config", "configs/digits.py", "--workdir", str(tmp_path / "run")]
    assert command.main([*flags, "--override_resume", names]) == 2
    wrong = names.split(",")[-1]
    told = f"error: override_resume has {wrong!r}; allowed: learning_rate, batch_size, "
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
