"""The README: short, with commands that work as they stand, in order, from an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dit_moe.config.verbs import VERBS
from tests.checkout import copy_parts
from tests.convert.converted import FAMILIES, FIXTURES
from tests.processes import outside_of_make

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent

# What a checkout has that the commands use.
PARTS = (
    "Makefile",
    "train.py",
    "sample.py",
    "pyproject.toml",
    "dit_moe",
    "eval",
    "configs",
    "tests",
)

# By how a command begins, the flags behind it that make it small; the last of a flag counts.
SMALL = {
    "python train.py": "--config.train.steps=6 --config.train.warmup_steps=2 "
    "--config.train.batch_size=16 --config.train.sample_every=0 --config.model.width=16 "
    "--config.model.depth=2 --config.model.heads=2",
    "python sample.py": "--num_samples 40 --steps 2",
    "python -m eval.classes": "",
    "python -m dit_moe.analysis": "--num_images 16 --time_bins 2 --steps 2",
    "python -m dit_moe.report": "",
    "python -m dit_moe.plan": "",
    "python -m dit_moe.data.prepare": "",
    "python -m dit_moe.convert": "",
    "python -m pytest": "tests/test_xla.py",  # rather than all
    "test ": "",
    "echo ": "",
}
# Commands that another test runs: in an environment of their own, or until they are stopped.
ELSEWHERE = {
    "pip install": "tests/test_wheel.py",
    "python -m dit_moe.play": "tests/play/test_page.py",
}
# Published checkpoints are stood in for by the peers' fixtures.
STAND_INS = {family: name for name, family in FAMILIES.items()} | {"sit": "dit_tiny"}


def written() -> list[str]:
    """The commands of the README, in order: those of its blocks and those in its sentences."""
    found = []
    for match in re.finditer(r"```bash\n(.*?)```|`((?:python|make|pip) [^`]+)`", README, re.S):
        block = match[1] or match[2]
        found += block.replace("\\\n", " ").strip().splitlines()
    return found


def steps(command: str, folder: Path) -> list[str]:
    """What `make` would run there, one line each; another command is its own."""
    if not command.startswith("make "):
        return [command]
    # No environment is made: as if it were there.
    make = ["make", "--dry-run", "--old-file=.venv/.installed", "VENV=.venv", "BIN=BIN"]
    done = subprocess.run(
        [*make, *command.split()[1:]],
        cwd=folder,
        env=outside_of_make(),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout.replace("BIN/", "").splitlines()


def small(line: str) -> str:
    """The line with small numbers, and with checkpoints that are there."""
    (flags,) = [flags for start, flags in SMALL.items() if line.startswith(start)]
    if family := re.search(r"--family (\S+)", line):
        stand_in = FIXTURES / STAND_INS[family[1]]
        there = f"--checkpoint {stand_in}.safetensors --model_json {stand_in}.json"
        line = re.sub(r"--checkpoint \S+", there, line)
    return f"{line} {flags}"


@pytest.fixture
def folder(tmp_path):
    """A checkout, and what the README supposes to be there."""
    copy_parts(PARTS, tmp_path)
    noise = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for i in range(8):
            pixels = noise.integers(0, 256, (40, 48, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / kind / f"{i}.png")
    return tmp_path


@pytest.mark.slow
def test_every_command_in_order(folder):
    # As a user runs it: without the suite's virtual devices and unoptimised compilation.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    commands = [c for c in written() if not c.startswith(tuple(ELSEWHERE))]
    assert len(commands) > 10
    for command in commands:
        for line in steps(command, folder):
            subprocess.run(small(line), shell=True, check=True, cwd=folder, env=environment)
    for program in re.findall(r"```python\n(.*?)```", README, re.S):
        subprocess.run([sys.executable, "-c", program], check=True, cwd=folder, env=environment)


def test_a_command_for_every_family():
    told = re.findall(r"python -m dit_moe.convert --family (\S+) ", README)
    assert sorted(told) == sorted(STAND_INS)


def test_every_verb_is_told_of():
    table = README.partition("## Verbs\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"(?m)`([\w-]+)`(?=[^|]*\|[^|]*\|$)", table)) == set(VERBS)


def test_length():
    assert len(README.splitlines()) <= 150


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert len(targets) > 10
    assert [target for target in targets if not (ROOT / target).exists()] == []
