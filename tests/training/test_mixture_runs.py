"""Mixtures of every build through a whole run: training, resuming, publishing, sampling.

One network has them all, a segment each, so that they are compiled and trained together.
"""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dit_moe.config import Config, SampleConfig
from dit_moe.convert.export import export_run
from dit_moe.runs.loading import load_run
from dit_moe.sampling.run_sampler import RunSampler
from dit_moe.sampling.sample_set import write_sample_set
from dit_moe.training import session
from dit_moe.training.loop import train
from dit_moe.training.step import build_step
from tests.tiny import ADAMOE, DIFFMOE, HECTO, PYRAMID, RACE, UNLIKE, in_segments, tiny
from tests.training.test_training import assert_same, final_state

MIXTURES = (*PYRAMID, *in_segments(HECTO, UNLIKE, DIFFMOE, ADAMOE, RACE))
EXPERTS = (2, 4, 2, 6, 4, 8, 4)
"""Columns of the load of every MoE layer."""
KEPT = {"4": ("threshold", 0), "5": ("updates", 2), "6": ("threshold", 0)}
"""What routers keep beside the gradient by their segment, and what is less than any of it."""


@pytest.fixture(scope="module")
def config() -> Config:
    return dataclasses.replace(tiny(MIXTURES, steps=3, log_every=1), sample=SampleConfig(steps=2))


@pytest.fixture(scope="module")
def folders(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole`: a run of three steps; `parts`: the same, stopped after two."""
    folder = tmp_path_factory.mktemp("runs")
    step = build_step(config.model, config.objective, config.train, config.seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "build_step", lambda *parts: step)
        train(config, folder / "whole")
        shorter = dataclasses.replace(config.train, steps=2)
        train(dataclasses.replace(config, train=shorter), folder / "parts")
        train(config, folder / "parts")
    return folder


def test_resuming_is_exact(config: Config, folders: Path):
    """What routers keep beside the gradient goes on, too."""
    expected, actual = (final_state(config, folders / name) for name in ("whole", "parts"))
    assert_same(actual, expected)
    for segment, (name, least) in KEPT.items():
        path = f"trunk.segments.{segment}.blocks.0.feed_forward.router.{name}"
        assert (expected.parameters[path] > least).all(), path


def test_the_table_tells_the_load_of_every_expert(folders: Path):
    with (folders / "whole" / "metrics.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    loads = [column for column in last if column.startswith("moe/load/") and last[column]]
    columns = {
        f"moe/load/layer{n:02d}/expert{e:02d}" for n, k in enumerate(EXPERTS) for e in range(k)
    }
    assert set(loads) == columns


def test_an_open_folder_samples_as_the_run(folders: Path, tmp_path: Path):
    export_run(str(folders / "whole"), tmp_path / "open", "safetensors", ema=True)
    run, published = load_run(folders / "whole"), load_run(tmp_path / "open")
    assert published.config == run.config
    assert published.parameters.keys() == run.parameters.keys()
    pictures = []
    for number, folder in enumerate((folders / "whole", tmp_path / "open")):
        sampler = RunSampler(folder, ema=True, num_samples=4, batch_size=4)
        npz, _ = write_sample_set(sampler, tmp_path / f"samples-{number}")
        pictures.append(np.load(npz, allow_pickle=False)["arr_0"])
    np.testing.assert_array_equal(*pictures)
    assert pictures[0].std() > 1
