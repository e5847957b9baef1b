"""The demo held to what the README promises. Takes minutes: run by `make test-slow`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_demo(tmp_path):
    # As a user runs it: without the suite's virtual devices and unoptimised compilation.
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}

    def command(*arguments: object) -> None:
        line = [sys.executable, *map(str, arguments)]
        subprocess.run(line, check=True, cwd=ROOT, env=environment)

    run, out = tmp_path / "run", tmp_path / "out"
    command("train.py", "--config", "configs/digits.py", "--workdir", run)
    command("sample.py", "--workdir", run, "--num_samples", 400, "--output", out)
    command("-m", "eval.classes", "--samples", out / "samples.npz", "--output", out / "result.json")
    result = json.loads((out / "result.json").read_text())
    assert result["samples"]["asked_class_accuracy"] >= 0.95
    assert result["frechet_ratio_to_heldout"] <= 3
    assert result["samples"]["close_to_train_share"] <= 0.1
