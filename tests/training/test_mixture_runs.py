"""Mixtures of every build through a whole run: training, resuming, publishing, sampling."""

import csv
import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from dit_moe.config import SampleConfig
from dit_moe.convert.export import export_run
from dit_moe.runs.loading import load_run
from dit_moe.sampling.run_sampler import RunSampler
from dit_moe.sampling.sample_set import write_sample_set
from dit_moe.training import session
from dit_moe.training.loop import train
from dit_moe.training.step import build_step
from tests.tiny import HECTO, PYRAMID, UNLIKE, tiny
from tests.training.test_training import final_state

MIXTURES = {"pyramid": PYRAMID, "hecto": HECTO, "unlike": UNLIKE}
EXPERTS = {"pyramid": (2, 4), "hecto": (2,), "unlike": (6, 6)}
"""Columns of the load of every MoE layer."""


@pytest.mark.parametrize("name", MIXTURES)
def test_a_run(name: str, tmp_path: Path, monkeypatch):
    """Resuming is exact, the table tells every expert's load, an open folder samples as the run."""
    whole, part = (tiny(MIXTURES[name], steps=n, log_every=1) for n in (3, 2))
    config = dataclasses.replace(whole, sample=SampleConfig(steps=2))
    step = build_step(config.model, config.objective, config.train, config.seed)
    monkeypatch.setattr(session, "build_step", lambda *parts: step)
    train(config, tmp_path / "whole")
    train(dataclasses.replace(config, train=part.train), tmp_path / "parts")
    train(config, tmp_path / "parts")
    expected, actual = (final_state(config, tmp_path / part) for part in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)

    with (tmp_path / "whole" / "metrics.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    loads = [column for column in last if column.startswith("moe/load/") and last[column]]
    columns = {
        f"moe/load/layer{n:02d}/expert{e:02d}"
        for n, k in enumerate(EXPERTS[name])
        for e in range(k)
    }
    assert set(loads) == columns

    export_run(str(tmp_path / "whole"), tmp_path / "open", "safetensors", ema=True)
    run, published = load_run(tmp_path / "whole"), load_run(tmp_path / "open")
    assert published.config == run.config
    assert published.parameters.keys() == run.parameters.keys()
    pictures = []
    for folder in ("whole", "open"):
        sampler = RunSampler(tmp_path / folder, ema=True, num_samples=4, batch_size=4)
        npz, _ = write_sample_set(sampler, tmp_path / f"samples-{folder}")
        pictures.append(np.load(npz, allow_pickle=False)["arr_0"])
    np.testing.assert_array_equal(*pictures)
    assert pictures[0].std() > 1
