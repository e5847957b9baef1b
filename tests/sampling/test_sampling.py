"""From a run folder to a set of samples: the sampler and both commands."""

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import dit_moe.commands.sample as sample
from dit_moe.config import Config, ConfigError, DDPMConfig, MeshConfig, ModelConfig, SampleConfig
from dit_moe.config.files import to_json
from dit_moe.convert.export import export_run
from dit_moe.data.classes import Classes, write_classes
from dit_moe.models.parameters import init_parameters
from dit_moe.sampling import sampler as sampling
from dit_moe.sampling.known_images import SteeringRequest
from dit_moe.sampling.request import build_request
from dit_moe.sampling.run_sampler import RunSampler
from dit_moe.sampling.sample_set import write_sample_set
from dit_moe.storage import images
from dit_moe.storage.files import lock
from dit_moe.training.loop import train
from tests.tiny import DIFFMOE, tiny
from tests.xla import with_devices

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run whose network is not zero any more."""
    workdir = tmp_path_factory.mktemp("run")
    config = tiny(steps=3, learning_rate=0.05, log_every=3)
    train(dataclasses.replace(config, sample=SampleConfig(steps=3)), workdir)
    return workdir


def make(run: Path, output: Path, **settings: object) -> tuple[np.ndarray, np.ndarray]:
    defaults = {"ema": False, "batch_size": 8, "num_samples": 10}
    workdir = settings.pop("workdir", run)
    npz, png = write_sample_set(RunSampler(workdir, **{**defaults, **settings}), output)
    with Image.open(png) as picture:
        assert min(picture.size) > 64
    with np.load(npz, allow_pickle=False) as arrays:
        return arrays["arr_0"], arrays["arr_1"]


def test_a_set(run, tmp_path):
    x, labels = make(run, tmp_path)
    assert x.shape == (10, 8, 8, 1)
    assert x.dtype == np.uint8
    np.testing.assert_array_equal(labels, np.arange(10))
    names = [".lock", "grid.png", "samples.json", "samples.npz"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    again, _ = make(run, tmp_path / "again")
    np.testing.assert_array_equal(again, x)


def test_a_complete_set_is_not_drawn_again(run, tmp_path, monkeypatch, capsys):
    x, _ = make(run, tmp_path)

    def generate(*args, **kwargs):
        raise AssertionError("drawn again")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(sampling, "generate", generate)
        same, _ = make(run, tmp_path)
        np.testing.assert_array_equal(same, x)
        with pytest.raises(AssertionError, match="drawn again"):
            make(run, tmp_path, seed=1)
    other, _ = make(run, tmp_path, seed=1)
    assert (other != x).any()
    assert "samples.npz differs in seed; it is replaced when" in capsys.readouterr().out


def test_a_set_of_a_folder_whose_name_is_no_text(run, tmp_path, capsys):
    folder = tmp_path / "\udcff"
    export_run(run, folder, "safetensors", ema=False)
    for _ in range(2):
        make(folder, tmp_path / "out", num_samples=2)
    assert "samples.npz is there already." in capsys.readouterr().out


def test_an_image_does_not_depend_on_the_batch(run, tmp_path):
    few, labels = make(run, tmp_path / "few", num_samples=5, classes=[3, 7])
    many, _ = make(run, tmp_path / "many", num_samples=24, classes=[3, 7], batch_size=16)
    np.testing.assert_array_equal(labels, [3, 7, 3, 7, 3])
    assert np.abs(few.astype(int) - many[:5]).max() <= 1  # the last bit may round differently


def test_experts_that_train_on_a_pool_sample_image_by_image():
    """DiffMoE with thresholds in the middle of its predictions."""
    config = tiny(DIFFMOE)
    keys = iter(jax.random.split(jax.random.key(1), 99))
    parameters = {
        path: jnp.full_like(value, 0.5)
        if path.endswith("threshold")
        else value + 0.05 * jax.random.normal(next(keys), value.shape)
        for path, value in init_parameters(config.model, jax.random.key(0)).items()
    }
    request = build_request(
        config, num_samples=3, integration={"steps": 2}, guidance={"scale": 2.0}
    )
    sampler = sampling.build_sampler(config, request)
    key_N, y_N = jax.random.split(jax.random.key(2), 3), jnp.arange(3, dtype=jnp.int32)
    together = sampler(parameters, key_N, y_N)
    alone = sampler(parameters, key_N[1:2], y_N[1:2])
    np.testing.assert_allclose(together[1:2], alone, atol=1e-5)
    # The thresholds do decide.
    parameters = {p: 0 * v if p.endswith("threshold") else v for p, v in parameters.items()}
    assert np.abs(sampler(parameters, key_N, y_N) - together).max() > 1e-3


def test_settings_matter(run, tmp_path):
    plain, _ = make(run, tmp_path)
    for change in (
        {"seed": 1},
        {"guidance": {"scale": 3.0, "interval": (0.3, 1.0), "rescale": 0.5}},
        {"integration": {"solver": "dopri5"}},
        {"integration": {"steps": 4}},
        {"classes": [5]},
        {"ema": True},
    ):
        other, _ = make(run, tmp_path, **change)
        assert (other != plain).any(), change
    drawn = json.loads((tmp_path / "samples.json").read_text())
    assert drawn["start_share"] == pytest.approx(0.9**3)


def test_a_set_with_a_cache(run, tmp_path, capsys):
    """It is told what is left out, and another cache makes another set."""
    plain, _ = make(run, tmp_path)
    assert "cache" not in json.loads((tmp_path / "samples.json").read_text())
    x, _ = make(run, tmp_path, cache="fora:every=2", integration={"steps": 6})
    assert (x != plain).any()
    drawn = json.loads((tmp_path / "samples.json").read_text())
    assert drawn["cache"] == {"name": "fora", "every": 2}
    assert drawn["computed"]["full_evaluations"] == 4
    assert 0.5 < drawn["computed"]["share_of_flops"] < 0.9
    said = capsys.readouterr().out
    assert "The cache computes 4 of 6 evaluations whole, and " in said
    assert "differs in cache" in said
    sampler = RunSampler(run, ema=False, batch_size=8, num_samples=2, cache="taylorseer:every=1")
    assert "computed" not in sampler.identity


def test_classes_by_name(run, tmp_path):
    named = shutil.copytree(run, tmp_path / "named")
    names = ("nought", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    write_classes(named, Classes(names, (1,) * 10))
    _, labels = make(named, tmp_path / "out", classes=["seven", "2"], num_samples=3)
    np.testing.assert_array_equal(labels, [7, 2, 7])
    drawn = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert (drawn["classes"], drawn["class_names"]) == ([7, 2], ["seven", "two"])
    with pytest.raises(ConfigError, match=r"classes has 'ten'; allowed: .*, or names: nought, one"):
        make(named, tmp_path / "out", classes=["ten"])


def test_a_run_that_guides_itself(run, tmp_path):
    plain, _ = make(run, tmp_path / "plain")
    settings = {"guide": run, "guidance": {"guide": "auto", "scale": 3.0}}
    itself, _ = make(run, tmp_path / "out", guide_ema=False, **settings)
    np.testing.assert_array_equal(itself, plain)
    drawn = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert drawn["guide"]["weights"] == drawn["weights"]
    assert drawn["start_share"] is None  # of parameters that are no average
    other, _ = make(run, tmp_path / "out", **settings)
    assert (other != plain).any()


def test_a_set_that_goes_on_from_pictures(run, tmp_path):
    """Its labels are theirs, and the grid shows both."""
    pictures = np.random.default_rng(0).integers(0, 256, (3, 4, 4), np.uint8)
    np.savez(tmp_path / "small.npz", pictures, np.array([5, 2, 5]))
    steering = SteeringRequest("super_resolution", tmp_path / "small.npz")
    _, labels = make(run, tmp_path / "out", steering=steering, num_samples=4)
    np.testing.assert_array_equal(labels, [5, 2, 5, 5])
    drawn = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert drawn["steering"]["steer"] == "super_resolution"
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert grid.width > 6 * 64  # three pairs of class 5


def test_an_interrupted_set_goes_on(run, tmp_path, monkeypatch):
    expected, _ = make(run, tmp_path / "whole", num_samples=30)
    original = sampling.generate

    def interrupted(*args, **kwargs):
        yield from list(original(*args, **kwargs))[:2]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sampling, "generate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(run, tmp_path / "part", num_samples=30)
    assert not (tmp_path / "part" / "samples.npz").exists()

    starts = []

    def counted(*args, start, **kwargs):
        starts.append(start)
        return original(*args, start=start, **kwargs)

    monkeypatch.setattr(sampling, "generate", counted)
    actual, _ = make(run, tmp_path / "part", num_samples=30)
    np.testing.assert_array_equal(actual, expected)
    make(run, tmp_path / "part", num_samples=30, seed=1)
    assert starts == [16, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"integration": {"solver": "ancestral"}},
            "solver is 'ancestral' with objective 'rectified_flow'; allowed",
        ),
        (
            {"integration": {"eta": 0.5}},
            "eta is 0.5 with solver 'euler'; allowed: only with solver ddim",
        ),
        ({"integration": {"solver": "ddim", "eta": 1.5}}, "eta is 1.5; allowed: 0 to 1"),
        (
            {"integration": {"solver": "dopri5", "tolerance": 1e-9}},
            "tolerance is 1e-09; allowed: 1e-6",
        ),
        (
            {"integration": {"solver": "dopri5", "time_grid": "karras"}},
            "time_grid is 'karras' with solver 'dopri5'",
        ),
        (
            {"integration": {"time_grid": "shifted", "shift": 0.0}},
            "shift is 0.0; allowed: 0.001 to 1000",
        ),
        (
            {"integration": {"time_grid": "shifted", "shift": 1e8}},
            "shift is 100000000.0; allowed: 0.001 to 1000",
        ),
        (
            {"integration": {"time_grid": "karras", "shift": 2.0}},
            "shift is 2.0 with time_grid 'karras'; allowed",
        ),
        ({"classes": [10]}, "classes has 10; allowed: 0 to 9"),
        ({"num_samples": 0}, "num_samples is 0; allowed: 1 to 100000000"),
        ({"integration": {"steps": 0}}, "steps is 0; allowed: 1 to 50000"),
        ({"seed": -1}, "seed is -1; allowed: 0 to 4294967295"),
        ({"seed": 2**70}, "allowed: 0 to 4294967295"),
        ({"guidance": {"scale": float("inf")}}, "guidance.scale is inf; allowed: 0 to 1000 (1"),
        ({"guidance": {"scale": 1e38}}, "guidance.scale is 1e+38; allowed: 0 to 1000 (1"),
        ({"guidance": {"scale": -1.0}}, "guidance.scale is -1.0; allowed: 0 to 1000 (1"),
        ({"guidance": {"scale": float("nan")}}, "guidance.scale is nan; allowed: 0 to 1000 (1"),
        ({"batch_size": 0}, "batch_size is 0; allowed: 1 to 65536"),
        ({"batch_size": 10**30}, "; allowed: 1 to 65536"),
        ({"num_samples": 10**12}, "num_samples is 1000000000000; allowed: 1 to 100000000"),
        ({"integration": {"steps": 10**9}}, "steps is 1000000000; allowed: 1 to 50000"),
        ({"integration": {"steps": 10**30}}, "; allowed: 1 to 50000"),
        ({"classes": [2**70]}, "; allowed: 0 to 9"),
        ({"guidance": {"channels": "first_three", "scale": 2.0}}, "has 1 channel"),
        (
            {"guidance": {"guide": "auto"}},
            "guidance is 'auto' without guide; allowed: 'auto' with a guide",
        ),
        ({"guide": "g"}, "guidance is 'cfg' with guide 'g'; allowed: 'auto' with a guide"),
        (
            {"guide": "g", "guidance": {"guide": "auto"}},
            "guide is 'g', which is not a folder; allowed: a run",
        ),
        ({"workdir": Path("nowhere")}, "workdir is 'nowhere', which is not a folder"),
    ],
)
def test_bad_requests_write_nothing(run, tmp_path, settings, message):
    with pytest.raises(ConfigError) as error:
        make(run, tmp_path, **settings)
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_checkpoint(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json does not exist"):
        make(tmp_path, tmp_path / "out")


def test_a_foreign_folder_is_left_alone(run, tmp_path):
    mine = tmp_path / "samples.parts" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(ConfigError, match="holds no samples of ours; allowed: another --output"):
        make(run, tmp_path)
    assert mine.read_text() == "mine"


def stop_after(monkeypatch, batches: int, run: Path, output: Path, **settings: object) -> None:
    """A set that is interrupted."""
    original = sampling.generate

    def interrupted(*args, **kwargs):
        yield from itertools.islice(original(*args, **kwargs), batches)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sampling, "generate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(run, output, **settings)


def test_parts_of_other_weights_are_neither_reused_nor_removed(run, tmp_path, monkeypatch):
    copy, parts = tmp_path / "run", tmp_path / "out" / "samples.parts"
    shutil.copytree(run, copy)
    stop_after(monkeypatch, 1, copy, tmp_path / "out")
    # Another run takes its place, at the same step.
    shutil.rmtree(copy)
    config = dataclasses.replace(tiny(steps=3, learning_rate=0.05, log_every=3), seed=1)
    train(dataclasses.replace(config, sample=SampleConfig(steps=3)), copy)
    with pytest.raises(ConfigError, match="unfinished set that differs in weights; allowed: the"):
        make(copy, tmp_path / "out")
    assert len(list(parts.glob("*.npy"))) == 1
    expected, _ = make(copy, tmp_path / "fresh")
    shutil.rmtree(parts)
    actual, _ = make(copy, tmp_path / "out")
    np.testing.assert_array_equal(actual, expected)


def test_a_set_goes_on_whatever_its_batches_and_its_number(run, tmp_path, monkeypatch):
    """From 16 images of 30: 20 in other batches, then 40, then 12."""
    expected, _ = make(run, tmp_path / "whole", num_samples=40)
    stop_after(monkeypatch, 2, run, tmp_path / "out", num_samples=30)
    starts, original = [], sampling.generate

    def counted(*args, start, **kwargs):
        starts.append(start)
        return original(*args, start=start, **kwargs)

    monkeypatch.setattr(sampling, "generate", counted)
    for num_samples, batch_size in ((20, 16), (40, 8), (12, 8)):
        settings = {"num_samples": num_samples, "batch_size": batch_size}
        actual, labels = make(run, tmp_path / "out", **settings)
        assert np.abs(actual.astype(int) - expected[:num_samples]).max() <= 1
        np.testing.assert_array_equal(labels, np.arange(num_samples) % 10)
    assert starts == [16, 20, 12]
    # What was drawn of the larger set is still there.
    make(run, tmp_path / "out", num_samples=40)
    assert starts[3:] == [40]
    assert not (tmp_path / "out" / "samples.parts").exists()


def test_two_processes_with_one_output(run, tmp_path):
    with lock(tmp_path / "out" / ".lock", OSError()):
        with pytest.raises(ConfigError, match="out', into which another process draws; allowed"):
            make(run, tmp_path / "out")
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_a_set_too_large_for_the_disk(run, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=6_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ConfigError, match=r"is 100, which takes 6\.4e-06 GB, but output"):
        make(run, tmp_path / "out", num_samples=100)
    assert not (tmp_path / "out").exists()
    make(run, tmp_path / "out", num_samples=10)


def test_samples_that_are_not_finite_are_no_set(run, tmp_path, monkeypatch):
    def sampler(parameters, key_N, y_N, measured):
        return jnp.ones((len(y_N), 8, 8, 1)).at[1, 2, 3].set(jnp.nan)

    monkeypatch.setattr(sampling, "build_sampler", lambda *args, **kwargs: sampler)
    with pytest.raises(ConfigError, match="1 of 8 samples from number 0 on have values that are"):
        make(run, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_batch_too_large_for_the_memory(run, monkeypatch):
    def generate(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")
        yield

    sampler = RunSampler(run, ema=False, batch_size=8, num_samples=10)
    monkeypatch.setattr(sampling, "generate", generate)
    with pytest.raises(ConfigError, match="batch_size is 8, for which the devices lack memory"):
        next(sampler.batches())


def test_classes_without_images_are_drawn_only_if_asked_for(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    write_classes(copy, Classes(("a", "b", "c"), (3, 0, 1)))
    settings = {"ema": False, "batch_size": 8, "num_samples": 4}
    assert RunSampler(copy, **settings).request.labels().tolist() == [0, 2, 0, 2]
    assert "Draws the 2 of 10 classes that the training data have." in capsys.readouterr().out
    assert RunSampler(copy, **settings, classes=[1, 2]).request.classes == (1, 2)
    assert "The training data have no image of class 1." in capsys.readouterr().out


def test_a_config_that_does_not_fit_the_checkpoint(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path = copy / "config.json"
    path.write_text(path.read_text().replace('"width": 16', '"width": 32'))
    with pytest.raises(ConfigError, match=r"does not fit config\.json: .* differ in shape"):
        make(copy, tmp_path / "out")


def test_a_run_of_other_devices(tmp_path):
    """Trained on four devices, sampled on this process's eight."""
    config, run = tmp_path / "tiny.json", tmp_path / "run"
    config.write_text(to_json(tiny(None, steps=1)))
    code = (
        "from pathlib import Path\n"
        "from dit_moe.config.files import load_json\n"
        "from dit_moe.training.loop import train\n"
        f"train(load_json(Path({str(config)!r})), Path({str(run)!r}))\n"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": with_devices(4), "PYTHONPATH": str(ROOT)},
    )
    x, _ = make(run, tmp_path / "out", integration={"steps": 2})
    assert x.shape == (10, 8, 8, 1)


@pytest.mark.parametrize("solver", ["ancestral", "ddim"])
def test_ddpm_with_learned_variance(solver):
    config = Config(
        name="x",
        model=ModelConfig(image_size=4, channels=1, width=8, depth=1, heads=1, learn_sigma=True),
        objective=DDPMConfig(variance="learned_range"),
        mesh=MeshConfig(),
    )
    request = build_request(config, num_samples=3, integration={"solver": solver, "steps": 5})
    sampler = sampling.build_sampler(config, request)
    parameters = init_parameters(config.model, jax.random.key(0))
    (x,) = sampling.generate(sampler, parameters, request, batch_size=3)
    assert x.shape == (3, 4, 4, 1)
    assert np.isfinite(x).all()
    with pytest.raises(ConfigError, match="steps is 1001; allowed: 1 to 1000"):
        build_request(config, num_samples=3, integration={"steps": 1001})


def test_to_uint8():
    x = np.array([-2, -1, -0.5, 0, 0.5, 1, 2], np.float32)
    np.testing.assert_array_equal(images.to_uint8(x), [0, 0, 64, 128, 191, 255, 255])
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(images.to_uint8(levels / np.float32(127.5) - 1), levels)


def command(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("train.py", "--config", "configs/digits.py", "--config.train.step=3"),
        ("train.py", "--config", "configs/none.py"),
        ("train.py", "--config", "configs/dit.py:S/2"),
        ("sample.py", "--output", "out", "--classes", "a"),
        ("sample.py", "--output", "out"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(arguments, tmp_path):
    result = command(*arguments, "--workdir", tmp_path / "run")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_wrong_option_of_a_solver_is_one_line_and_exit_code_2(run, tmp_path, capsys):
    flags = ["--workdir", str(run), "--output", str(tmp_path / "out")]
    assert sample.main([*flags, "--solver", "unipc", "--tolerance", "0.1"]) == 2
    expected = "error: tolerance is 0.1 with solver 'unipc'; allowed: only with solver dopri5\n"
    assert capsys.readouterr().err == expected
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", ["train.py", "sample.py"])
def test_help_teaches(script):
    result = command(script, "--help")
    assert result.returncode == 0
    assert "examples:" in result.stdout
