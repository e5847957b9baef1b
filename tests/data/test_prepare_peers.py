import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dit_moe.commands.prepare import main
from tests.data import tiny_autoencoder

pytestmark = pytest.mark.peers

COUNT, BAD = 30, (3, 17)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for index in range(COUNT):
        path = folder / "abc"[index % 3] / f"{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (20, 16 + index, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path)
        if index in BAD:
            path.write_bytes(path.read_bytes()[:100])
    return folder


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory) -> Path:
    return tiny_autoencoder.write(tmp_path_factory.mktemp("autoencoder") / "tiny")


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def flags(folder: Path, output: Path, autoencoder: object) -> list[str]:
    values = {
        "input": folder,
        "output": output,
        "autoencoder": autoencoder,
        "image_size": 16,
        "images_per_shard": 8,
        "batch_size": 2,
        "name": "pictures",
        "max_rejected": 0.1,
    }
    return [f"--{name}={value}" for name, value in values.items()]


@pytest.mark.parametrize("latents", [False, True])
def test_beam_makes_the_same_bytes(folder, autoencoder, tmp_path, latents):
    from dit_moe.commands import prepare_beam as beam

    source = autoencoder if latents else "none"
    assert main([*flags(folder, tmp_path / "plain", source), "--workers=1"]) == 0
    assert beam.main([*flags(folder, tmp_path / "beam", source), "--runner=DirectRunner"]) == 0
    assert contents(tmp_path / "beam") == contents(tmp_path / "plain")


def test_beam_processes_go_on_with_what_is_missing(folder, tmp_path):
    """Several worker processes, on an output that another run left half done."""
    plain, output = tmp_path / "plain", tmp_path / "beam"
    assert main([*flags(folder, plain, "none"), "--workers=1"]) == 0
    # As much rejected as is allowed at no time: the progress is kept.
    strict = [*flags(folder, output, "none"), "--workers=1", "--max_rejected=0"]
    assert main(strict) == 2
    for index in (1, 2):
        (output / f".progress/{index:05d}.json").unlink()
    (output / "pictures-train.array_record-00002-of-00004").unlink()
    command = [sys.executable, "-m", "dit_moe.data.prepare.beam", *flags(folder, output, "none")]
    beam = [
        "--runner=DirectRunner",
        "--direct_num_workers=2",
        "--direct_running_mode=multi_processing",
    ]
    result = subprocess.run(
        [*command, *beam], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "Resuming: 2 of 4 shards are done." in result.stdout
    assert contents(output) == contents(plain)


def test_a_machine_that_sees_another_input_is_refused(folder, tmp_path):
    from dit_moe.config import ConfigError
    from dit_moe.data.prepare.beam_pipeline import MakeShard
    from dit_moe.data.prepare.job import Job, Settings

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    settings = Settings(
        "auto", str(copy), "train", tmp_path / "out", "pictures", None, "float32", 16, 2, 8
    )
    identity = Job(settings).identity()
    MakeShard(settings, identity).setup()
    next(copy.rglob("*.png")).unlink()
    with pytest.raises(ConfigError, match="the same input and autoencoder on every machine"):
        MakeShard(settings, identity).setup()
