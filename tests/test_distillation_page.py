"""The commands of docs/distillation.md as they stand, in order, from an empty folder."""

import re
import shlex
from pathlib import Path

import pytest

from dit_moe.commands import train
from dit_moe.runs.loading import load_run
from tests.test_extending import SMALL

PAGE = (Path(__file__).parent.parent / "docs" / "distillation.md").read_text()
# The depths are the page's.
NARROW = [flag for flag in SMALL if "depth" not in flag]


@pytest.mark.slow
def test_a_student_of_half_the_depth(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = PAGE.replace("\\\n", "")
    commands = [shlex.split(c) for c in re.findall(r"^python train\.py (.*)", text, re.MULTILINE)]
    for flags in commands:
        assert train.main([*flags, *NARROW]) == 0
    said = capsys.readouterr().out
    assert "Learns from runs/teacher at step 2, up to step 1." in said
    assert " of its teacher up to step 1" in said
    shapes = [load_run(f"runs/{run}").config.model.depth for run in ("teacher", "student")]
    assert shapes == [4, 2]
    assert Path("runs/student/teacher.json").is_file()
