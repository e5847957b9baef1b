"""The wheel, installed where nothing of a checkout is. Builds it: run by `make test-slow`."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.checkout import copy_parts

ROOT = Path(__file__).parent.parent
PARTS = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "dit_moe", "eval", "configs")

SHORT = {
    "model.width": 16,
    "model.depth": 2,
    "model.heads": 2,
    "train.steps": 5,
    "train.warmup_steps": 2,
    "train.batch_size": 16,
    "train.sample_every": 0,
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build leaves files in it
    source.mkdir()
    copy_parts(PARTS, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, source]
    subprocess.run([*build, "--quiet"], check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def program(wheel, tmp_path_factory):
    """The program, in an environment of its own that sees this one's other packages."""
    folder = tmp_path_factory.mktemp("stranger") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "others.pth").write_text("\n".join(paths))  # whose own .pth files do not count
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True)
    return folder / "bin" / "dit-moe"


@pytest.mark.slow
def test_it_holds_all_and_takes_one_name(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in names} == {"dit_moe"}
    expected = {str(path.relative_to(ROOT)) for path in ROOT.glob("dit_moe/**/*.py")}
    expected |= {f"dit_moe/{path.relative_to(ROOT)}" for path in ROOT.glob("eval/**/*.py")}
    expected |= {f"dit_moe/{path.relative_to(ROOT)}" for path in ROOT.glob("configs/*.py")}
    assert names == expected | {
        *(str(path.relative_to(ROOT)) for path in ROOT.glob("dit_moe/*/*.html")),
        *(f"dit_moe/configs/sweeps/{path.name}" for path in ROOT.glob("configs/sweeps/*.toml")),
    }


@pytest.mark.slow
def test_a_stranger_trains_samples_and_judges(program, tmp_path):
    """From a folder with an `eval` of the stranger's own, which is on the path."""
    (tmp_path / "eval.py").write_text("raise RuntimeError('not yours')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def run(*arguments: object) -> str:
        line = [program, *map(str, arguments)]
        return subprocess.run(
            line, cwd=tmp_path, env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    settings = [f"--config.{name}={value}" for name, value in SHORT.items()]
    told = run("train", "--config", "configs/digits.py:dit-moe", "--workdir", "run", *settings)
    assert "Done. Next: dit-moe sample --workdir run --output out/\n" in told
    run("sample", "--workdir", "run", "--num_samples", 40, "--steps", 2, "--output", "out")
    samples = ["--samples", "out/samples.npz"]
    reference = ["--reference", "digits", "--features", "digits", "--metrics", "fid"]
    run("eval", *samples, *reference, "--cache", "cache", "--output", "fid.json")
    run("judge", *samples, "--output", "digits.json")
    run("report", "--workdir", "run", "--results", "fid.json")
    judged = json.loads((tmp_path / "digits.json").read_text())
    assert 0 <= judged["samples"]["asked_class_accuracy"] <= 1
    assert "dit-moe train --config repeat.py" in (tmp_path / "run" / "report.html").read_text()
    assert "Inception-v3" in run("weights")
