"""The recipes of docs/extending.md as they stand: each is one file, and works everywhere."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dit_moe.commands import analysis, convert, plan, sample, train
from dit_moe.config.data import SOURCES

ROOT = Path(__file__).parent.parent
SMALL = [
    "--config.model.width=16",
    "--config.model.depth=2",
    "--config.model.heads=2",
    "--config.train.steps=2",
    "--config.train.batch_size=8",
    "--config.train.warmup_steps=0",
    "--config.train.sample_every=0",
    "--config.train.validate_every=0",
    "--config.train.schedule=constant",
]


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the page, by their titles."""
    folder = tmp_path_factory.mktemp("recipes")
    page = (ROOT / "docs" / "extending.md").read_text()
    for title, code in re.findall(r'```python title="(.*?)"\n(.*?)```', page, re.DOTALL):
        (folder / title).write_text(code)
    return folder


@pytest.fixture(scope="module")
def position_run(recipes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("run") / "position"
    flags = ["--config", str(recipes / "my_router.py"), "--workdir", str(workdir)]
    assert train.main([*flags, *SMALL]) == 0
    return workdir


def test_a_router_trains_and_resumes(recipes: Path, position_run: Path, capsys):
    flags = ["--config", str(recipes / "my_router.py"), "--workdir", str(position_run)]
    assert train.main([*flags, *SMALL, "--config.train.steps=3"]) == 0
    assert "from step 2" in capsys.readouterr().out


def test_a_router_samples_in_another_process(recipes: Path, position_run: Path, tmp_path: Path):
    command = [sys.executable, "sample.py", "--workdir", position_run, "--output", tmp_path / "out"]
    command += ["--num_samples", "2", "--steps", "2"]
    run = {"cwd": ROOT, "capture_output": True, "text": True}
    unknown = subprocess.run([str(word) for word in command], **run)
    assert unknown.returncode == 2
    assert "router.name is 'position'; allowed: 'top_k', " in unknown.stderr
    assert "--extend" in unknown.stderr
    known = [*command, "--extend", recipes / "my_router.py"]
    done = subprocess.run([str(word) for word in known], **run)
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "out" / "samples.npz")["arr_0"].shape == (2, 8, 8, 1)


def test_a_router_is_counted_analysed_and_contrasted(recipes, position_run, tmp_path, capsys):
    assert plan.main(["--config", str(recipes / "my_router.py"), *SMALL, "--device", "h100"]) == 0
    assert "GFLOPs a training image" in capsys.readouterr().out
    flags = ["--workdir", str(position_run), "--output", str(tmp_path / "analysis")]
    assert analysis.main([*flags, "--num_images", "20", "--steps", "2"]) == 0
    found = json.loads((tmp_path / "analysis" / "analysis.json").read_text())
    position = found["inputs"]["training"]["layers"][0]["position"]
    assert position["share"] == pytest.approx(1)  # position says all there is to say
    # Its tokens choose, so that self-contrast is allowed, with the one router that there is.
    contrast = ["--guidance", "self_contrast", "--guidance_scale", "1.5", "--steps", "2"]
    flags = ["--workdir", str(position_run), "--output", str(tmp_path / "out")]
    assert sample.main([*flags, *contrast, "--num_samples", "2"]) == 0


def test_a_router_exports_openly_and_to_no_peer(position_run: Path, tmp_path: Path, capsys):
    flags = ["--workdir", str(position_run), "--output", str(tmp_path / "open")]
    assert convert.main(flags) == 0
    flags = ["--workdir", str(position_run), "--output", str(tmp_path / "peer.safetensors")]
    assert convert.main([*flags, "--format", "tc-dit"]) == 2
    assert "model.moe.router.name is 'position' (allowed: top_k)" in capsys.readouterr().err


def test_a_dense_run_is_upcycled_to_a_router_of_ones_own(recipes, tmp_path: Path):
    dense = tmp_path / "dense"
    flags = ["--config", "configs/digits.py:dit", "--workdir", str(dense)]
    assert train.main([*flags, *SMALL]) == 0
    flags = ["--upcycle", str(dense), "--config", str(recipes / "my_router.py")]
    overrides = [*SMALL[:3], "--config.model.moe.every=1", "--output", str(tmp_path / "sparse")]
    assert convert.main([*flags, *overrides]) == 0
    # The weight of a token is known to be 1: the function is the dense one's.
    import jax.numpy as jnp

    import dit_moe

    x, t, y = jnp.ones((2, 8, 8, 1)), jnp.array([100.0, 700.0]), jnp.array([3, 10])
    one, other = (dit_moe.load(folder)(x, t, y).value for folder in (dense, tmp_path / "sparse"))
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_kind_of_experts(recipes: Path, tmp_path: Path):
    flags = ["--extend", str(recipes / "my_expert.py"), "--config", "configs/digits.py:dit-moe"]
    flags += ["--workdir", str(tmp_path / "run"), "--config.model.moe.expert=geglu"]
    assert train.main([*flags, *SMALL]) == 0


def test_a_solver(recipes: Path, position_run: Path, tmp_path: Path):
    flags = ["--extend", str(recipes / "my_solver.py"), "--workdir", str(position_run)]
    flags += ["--output", str(tmp_path / "out"), "--solver", "ralston", "--steps", "3"]
    assert sample.main([*flags, "--num_samples", "2"]) == 0
    description = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert description["function_evaluations"] == 2 * 3 * 2  # slopes, steps, guided


def test_a_data_set(recipes: Path, tmp_path: Path, monkeypatch, capsys):
    flags = ["--config", str(recipes / "my_data.py"), "--workdir", str(tmp_path / "run")]
    assert train.main([*flags, *SMALL, "--config.train.validate_every=2"]) == 0
    header, row = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    found = dict(zip(header.split(","), row.split(","), strict=True))
    assert float(found["validation/loss"]) > 0
    classes = json.loads((tmp_path / "run" / "classes.json").read_text())
    assert classes["names"] == ["lying", "standing"]
    assert sum(classes["images"]) == 900
    # Where it is not known, the run's config is refused in a sentence.
    monkeypatch.delitem(SOURCES, "stripes")
    flags = ["--workdir", str(tmp_path / "run"), "--output", str(tmp_path / "out")]
    assert sample.main(flags) == 2
    error = capsys.readouterr().err
    assert "config.data.source is 'stripes'; allowed: 'digits', 'patches', 'prepared', or" in error
    extend = ["--extend", str(recipes / "my_data.py")]
    assert sample.main([*flags, *extend, "--num_samples", "2", "--steps", "2"]) == 0
