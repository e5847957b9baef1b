"""Samples of a store are those of the model that it was made of, in any memory."""

import dataclasses
import re
import threading
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.commands import sample as command
from dit_moe.config import Config, ConfigError
from dit_moe.models.parameters import Parameters
from dit_moe.runs.loading import load_run
from dit_moe.sampling import sample_parts
from dit_moe.sampling.request import Request, build_request
from dit_moe.sampling.run_sampler import RunSampler
from dit_moe.sampling.sampler import Sampler, build_sampler, image_keys
from dit_moe.streaming import running
from dit_moe.streaming.bank import streamed
from dit_moe.streaming.layout import EXPERTS
from dit_moe.streaming.making import make_store
from dit_moe.streaming.opening import OpenStore, memory_bytes, open_store
from dit_moe.streaming.ring import Ring, least_bytes
from tests.streaming.stores import packed, write_model
from tests.tiny import DIT_MOE, PROMOE, SOFT_MOE, UNLIKE, tiny

MODELS = {
    "dit_moe": tiny(DIT_MOE),
    "promoe": tiny(PROMOE),
    "unlike": tiny(UNLIKE),
    "soft": tiny(SOFT_MOE),
    "packed": packed(DIT_MOE),
}
IMAGES = 3


def deep(name: str) -> Config:
    """Of several units."""
    config = MODELS[name]
    return dataclasses.replace(config, model=dataclasses.replace(config.model, depth=8))


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory) -> tuple[Config, Path, Path]:
    """A config, an open folder and its store."""
    folder = tmp_path_factory.mktemp(request.param)
    config = deep(request.param)
    write_model(folder / "model", config)
    make_store(folder / "model", folder / "store", ema=False)
    return config, folder / "model", folder / "store"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Path]:
    """An open folder and its store."""
    folder = tmp_path_factory.mktemp("run")
    write_model(folder / "model", deep("dit_moe"))
    make_store(folder / "model", folder / "store", ema=False)
    return folder / "model", folder / "store"


def asked(config: Config, solver: str, **guidance: object) -> Request:
    return build_request(
        config,
        num_samples=IMAGES,
        integration={"solver": solver, "steps": 2},
        guidance={"scale": 2.0, **guidance},
    )


def draw(sampler: Sampler, parameters: Parameters) -> np.ndarray:
    key_N, y_N = image_keys(0, np.arange(IMAGES)), jnp.arange(IMAGES, dtype=jnp.int32)
    return np.asarray(sampler(parameters, key_N, y_N))


def streaming(config: Config, request: Request, opened: OpenStore) -> Sampler:
    return build_sampler(config, request, network=lambda model: streamed(model, opened.source))


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_bit_equal_at_any_budget(model, solver):
    """To each other, and to the network that scans over what is in memory."""
    config, folder, store = model
    if config.model.moe in (UNLIKE, SOFT_MOE) and solver == "euler":
        pytest.skip("one solver is enough for these")
    request = asked(config, solver)
    whole = draw(build_sampler(config, request), load_run(folder, ema=False).parameters)
    assert whole.std() > 0.1
    opened = open_store(store, config.model, ema=False)
    sampler = streaming(config, request, opened)
    least, layers = least_bytes(opened.store), opened.store.layers
    for budget in (least, least + layers[0].bytes, opened.store.bytes):
        ring = opened.fill(budget)
        assert ring.pinned < len(layers) or budget == opened.store.bytes
        np.testing.assert_array_equal(draw(sampler, opened.rest), whole)
        ring.close()


def test_bytes_of_a_step(model):
    """What an evaluation reads, counted over whole sets of images, the ring being full before and
    after."""
    config, _, store = model
    if config.model.moe in (UNLIKE, SOFT_MOE):
        pytest.skip("two kinds of experts at once may be asked for in turn")
    opened = open_store(store, config.model, ema=False)
    sampler = streaming(config, asked(config, "heun"), opened)
    for budget in (least_bytes(opened.store), least_bytes(opened.store) + 50_000):
        ring = opened.fill(budget)
        draw(sampler, opened.rest)
        settle(ring)
        before = ring.bytes_read
        draw(sampler, opened.rest)
        settle(ring)
        evaluations = 2 * 2  # Heun's, of both halves of guidance at once
        assert ring.bytes_read - before == evaluations * ring.streamed_bytes
        ring.close()


def settle(ring: Ring) -> None:
    while len(ring._loaded) + len(ring._used) < ring._slots:
        threading.Event().wait(0.001)


SETTINGS: dict[str, Any] = {
    "ema": False,
    "batch_size": 8,
    "num_samples": 10,
    "integration": {"steps": 2},
}


def images(folder: Path, **settings: Any) -> tuple[np.ndarray, dict[str, object]]:
    sampler = RunSampler(folder, **{**SETTINGS, **settings})
    return np.concatenate(list(sampler.batches())), sampler.identity


@pytest.fixture
def two_layers(monkeypatch):
    """Whatever memory is asked for, two layers' worth is left for experts."""
    monkeypatch.setattr(
        running, "experts_budget", lambda memory, store, program: least_bytes(store)
    )


@pytest.mark.usefixtures("two_layers")
def test_a_set_is_the_run_s_own(run, capsys):
    folder, store = run
    for settings in (
        {"integration": {"steps": 3}, "cache": "fora:every=3"},
        {"guidance": {"scale": 2.0, "guide": "self_contrast"}},
    ):
        whole, identity = images(folder, **settings)
        # The run's is drawn on several devices, which share a batch.
        streamed, own = images(store, memory="1GB", **settings)
        assert np.abs(whole.astype(int) - streamed).max() <= 1
        assert {k: v for k, v in own.items() if k != "workdir"} == {
            k: v for k, v in identity.items() if k != "workdir"
        }
    assert re.search(
        r"0 of 8 layers .* each pass of the network reads [\d.e-]+ GB of ", capsys.readouterr().out
    )


def test_without_memory_all_experts_stay(run, capsys):
    folder, store = run
    assert np.abs(images(folder)[0].astype(int) - images(store)[0]).max() <= 1
    assert "layers of experts" not in capsys.readouterr().out


def test_what_memory_may_be(run, tmp_path, capsys):
    folder, store = run
    assert memory_bytes("1.5GiB") == 3 * 2**29
    assert memory_bytes("500 MB") == 5 * 10**8
    line = ["--parameters=raw", "--num_samples=2", "--steps=1", f"--output={tmp_path / 'out'}"]
    for workdir, memory, message in (
        (folder, "4GB", "is no store of experts; allowed: a store, as python -m dit_moe.streaming"),
        (store, "4", "memory is '4'; allowed: a number with MB, GB, MiB or GiB, such as 4GB"),
        (store, "50MB", "memory is 0.05 GB; allowed: "),
    ):
        assert command.main([f"--workdir={workdir}", f"--memory={memory}", *line]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1 or "%|" in error
    assert not list((tmp_path / "out").rglob("*.npz"))
    needed = re.search(r"allowed: ([\d.]+ GB) or more", error)
    assert needed is not None
    # What the tests before it left behind grows with every compilation.
    memory = f"{float(needed[1].split()[0]) + 4:.2f}GB"
    assert command.main([f"--workdir={store}", f"--memory={memory}", *line]) == 0
    with pytest.raises(ConfigError, match="checkpoint is 'best'"):
        RunSampler(store, **SETTINGS, checkpoint="best")
    with pytest.raises(ConfigError, match="holds the parameters themselves alone"):
        RunSampler(store, **{**SETTINGS, "ema": True})


@pytest.mark.usefixtures("two_layers")
@pytest.mark.parametrize("fault", ["flipped", "cut", "deleted"])
def test_a_store_that_fails_while_it_is_drawn_from(run, fault, tmp_path, capsys, monkeypatch):
    """Parts that were drawn stay; nothing wrong is written, and what was begun is gone on with."""
    _, store = run
    path = store / EXPERTS
    whole, add, hurt = path.read_bytes(), sample_parts.Parts.add, []

    def spoil(parts: sample_parts.Parts, x_NxHxWxC: np.ndarray) -> None:
        add(parts, x_NxHxWxC)
        if not hurt:
            hurt.append(fault)
            if fault == "flipped":
                path.write_bytes(bytes(byte ^ 1 for byte in whole))
            elif fault == "cut":
                with path.open("r+b") as file:
                    file.truncate(4096)
            else:
                path.unlink()

    monkeypatch.setattr(sample_parts.Parts, "add", spoil)
    line = [f"--workdir={store}", "--parameters=raw", "--num_samples=24", "--batch_size=4"]
    line += ["--steps=3", f"--output={tmp_path / 'out'}", "--memory=1GB"]
    code = command.main(line)
    error = capsys.readouterr().err
    path.write_bytes(whole)
    if fault == "deleted":  # what is open stays
        assert code == 0
    else:
        assert code == 2
        said = [line for line in error.splitlines() if line.startswith("error: ")]
        assert len(said) == 1
        assert ("is damaged: expert" if fault == "flipped" else "was cut while") in said[0]
        assert not (tmp_path / "out" / "samples.npz").exists()
        assert command.main(line) == 0
        assert "Goes on after 4 images" in capsys.readouterr().out
    monkeypatch.setattr(sample_parts.Parts, "add", add)
    assert command.main([*line[:5], f"--output={tmp_path / 'again'}", "--memory=1GB"]) == 0
    drawn, again = (np.load(tmp_path / name / "samples.npz")["arr_0"] for name in ("out", "again"))
    np.testing.assert_array_equal(drawn, again)
