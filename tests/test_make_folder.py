"""What `make folder` asks of the commands, and the config that it trains."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from dit_moe.config import Config, ConfigError
from dit_moe.config.files import differences, load_file, override
from dit_moe.sampling.request import build_request
from tests.prepared_sets import write_pictures
from tests.processes import outside_of_make
from tests.tiny import tiny

ROOT = Path(__file__).parent.parent


def make_folder(*arguments: str, dry: bool = True) -> subprocess.CompletedProcess[str]:
    # No environment is made: as if it were there.
    command = ["make", *(["--dry-run"] if dry else []), "--old-file=.venv/.installed", "folder"]
    command += ["VENV=.venv", "IMAGES=docs", *arguments]
    environment = outside_of_make()
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


def prepared(folder: Path, size: int) -> Config:
    write_pictures(folder, np.zeros((4, size, size, 3), np.uint8), np.arange(4))
    return load_file(f"{ROOT / 'configs/prepared.py'}:{folder}")


def test_more_steps_go_on_with_the_same_run(tmp_path):
    write_pictures(tmp_path, np.zeros((4, 32, 32, 3), np.uint8), np.arange(4))
    configs = []
    for steps in (10_000, 20_000):
        lines = make_folder(f"STEPS={steps}").stdout.splitlines()
        (line,) = (line for line in lines if "train.py" in line)
        overrides = [word for word in line.split() if word.startswith("--config.")]
        configs.append(load_file(f"{ROOT / 'configs/prepared.py'}:{tmp_path}", overrides))
    assert [config.train.steps for config in configs] == [10_000, 20_000]
    assert differences(*configs) == ["train.steps"]
    assert configs[0].train.schedule == "constant"  # whose steps may change


def test_more_flags_reach_the_training():
    flags = "--config.train.batch_size=128 --override_resume batch_size"
    lines = make_folder(f"FLAGS={flags}").stdout.splitlines()
    assert [line.endswith(f" {flags}") for line in lines if "train.py" in line] == [True]


def test_what_is_not_asked_for_is_left_to_the_commands():
    lines = make_folder("IMAGE_SIZE=48x64").stdout
    assert "--channels" not in lines
    assert "data.flip" not in lines
    assert "data/docs-48x64" in lines
    lines = make_folder("CHANNELS=1", "FLIP=0").stdout
    assert " --channels 1" in lines
    (line,) = (line for line in lines.splitlines() if "train.py" in line)
    (flip,) = (word for word in line.split() if "data.flip" in word)
    assert override(tiny(), ["--config.data.flip=1"]).data.flip
    assert not override(tiny(), ["--config.data.flip=1", flip]).data.flip


def test_too_few_steps_are_refused_before_anything_is_prepared():
    result = make_folder("STEPS=500", dry=False)
    assert result.returncode == 2
    assert result.stdout.startswith("STEPS is 500; allowed: above WARMUP, which is 500 (WARMUP=")


def test_a_set_of_one_class_has_nothing_to_guide_to(tmp_path):
    write_pictures(tmp_path, np.zeros((4, 8, 8, 3), np.uint8), np.zeros(4), classes=1)
    config = load_file(f"{ROOT / 'configs/prepared.py'}:{tmp_path}")
    assert config.model.label_dropout == 0
    assert config.sample.guidance.scale == 1
    assert config.model.moe is not None
    assert not config.model.moe.unconditional_expert
    build_request(config, num_samples=2)

    several = prepared(tmp_path / "several", 8)
    assert (several.model.label_dropout, several.sample.guidance.scale) == (0.1, 1.5)


@pytest.mark.parametrize(("size", "patch"), [(4, 1), (8, 1), (28, 4), (32, 4), (35, 5), (64, 8)])
def test_patches_of_a_prepared_set(size, patch, tmp_path):
    assert prepared(tmp_path, size).model.patch_size == patch


@pytest.mark.parametrize(
    ("size", "near"), [(37, "36 or 40"), (34, "32 or 35"), (22, "21 or 24"), (9, "8 or 10")]
)
def test_sides_without_a_good_patch_are_refused(size, near, tmp_path):
    message = rf"has examples of {size}x{size}, which no patch divides .* such as {near}$"
    with pytest.raises(ConfigError, match=message):
        prepared(tmp_path, size)
