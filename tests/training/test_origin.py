"""Runs that start from another model."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath

import dit_moe.commands.train as train_command
from dit_moe.autoencoder.latent_space import write_latent_space
from dit_moe.config import ConfigError, MeshConfig
from dit_moe.convert.export import export_run
from dit_moe.convert.importing import SD_VAE
from dit_moe.data.classes import Classes, write_classes
from dit_moe.data.sources import build_sources
from dit_moe.devices.mesh import build_mesh
from dit_moe.runs.checkpoints import Checkpoints
from dit_moe.runs.folder import write_config
from dit_moe.runs.loading import load_run
from dit_moe.runs.state import abstract_state, init_state, start_state
from dit_moe.runs.writer import InMemory, write_run
from dit_moe.training.loop import train
from dit_moe.training.origin import InitFrom, find_start, prepare_origin, start_parameters
from tests.tiny import tiny

# An update too small to show.
STILL = {"steps": 1, "learning_rate": 1e-30}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run whose averages differ from its parameters."""
    workdir = tmp_path_factory.mktemp("source")
    config = tiny(None)
    write_config(config, epath.Path(workdir), resuming=False)
    mesh = build_mesh(config.mesh)
    state = init_state(config.model, config.train, mesh, seed=1)
    average = jax.tree.map(lambda p: p + 0.05, state.parameters)
    with Checkpoints(workdir, keep=1) as checkpoints:
        checkpoints.save(dataclasses.replace(state, step=state.step + 2, ema=average))
    return workdir


def assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("form", ["run", "exported"])
def test_the_state_lies_on_the_mesh(form, source, tmp_path):
    folder = source
    if form == "exported":
        folder = tmp_path / "exported"
        export_run(source, folder, "safetensors")
    config = dataclasses.replace(
        tiny(None, post_hoc_ema=(0.05, 0.1)), mesh=MeshConfig(data=2, fsdp=4)
    )
    mesh = build_mesh(config.mesh)
    like = abstract_state(config.model, config.train, mesh)
    start = find_start(InitFrom(str(folder)), config, build_sources(config.data, config.model))
    parameters = start_parameters(start, epath.Path(tmp_path), like.parameters)
    state = start_state(config.model, config.train, mesh, parameters, config.seed)

    expected = load_run(source, ema=True).parameters
    for tree in (state.parameters, state.ema, state.tracks["0.05"], state.tracks["0.1"]):
        assert_equal(tree, expected)
    assert_equal(
        state.optimizer, init_state(config.model, config.train, mesh, config.seed).optimizer
    )
    assert int(state.step) == 0
    assert jax.tree.map(lambda a: a.sharding, state) == jax.tree.map(lambda a: a.sharding, like)


def test_a_run_and_how_it_resumes(source, tmp_path, capsys):
    origin, workdir = shutil.copytree(source, tmp_path / "origin"), tmp_path / "run"
    train(tiny(None, **STILL), workdir, init_from=str(origin))
    assert f"Starts from the averaged parameters of {origin} at step 2." in capsys.readouterr().out
    expected = load_run(origin, ema=True).parameters
    for path, value in load_run(workdir, ema=False).parameters.items():
        np.testing.assert_allclose(value, expected[path], atol=1e-29, err_msg=path)
    assert json.loads((workdir / "origin.json").read_text()) == {
        "init_from": str(origin),
        "step": 2,
        "init_classes": {},
        "init_layers": [],
        "fingerprints": {},
    }
    # The origin is not needed again, and another one is refused.
    shutil.rmtree(origin)
    longer = tiny(None, **{**STILL, "steps": 2})
    train(longer, workdir, init_from=str(origin))
    assert f"Resuming {workdir} from step 1." in capsys.readouterr().out
    with pytest.raises(ConfigError, match=rf"holds a run that started from '{origin}'; allowed"):
        train(longer, workdir, init_from=str(source))


def test_a_run_that_began_at_random(source):
    with pytest.raises(ConfigError, match="holds a run that started from random parameters"):
        train(tiny(None), source, init_from=str(source))


def test_a_converted_run_is_no_run_to_go_on_with(source, tmp_path):
    run = load_run(source)
    shapes = {path: p.shape for path, p in run.parameters.items()}
    pieces = InMemory(shapes, lambda path, index: np.asarray(run.parameters[path])[index])
    write_run(tmp_path / "run", run.config, None, pieces)
    with pytest.raises(ConfigError, match=r"holds no optimizer .* with --init_from this one"):
        train(run.config, tmp_path / "run")


def test_another_network(source, tmp_path):
    config = tiny(None)
    model = dataclasses.replace(config.model, heads=4, depth=4, label_dropout=0.2)
    with pytest.raises(ConfigError) as error:
        train(dataclasses.replace(config, model=model), tmp_path, init_from=str(source))
    assert str(error.value) == (
        f"init_from is {str(source)!r}, whose network differs from config.model in "
        "model.depth, model.heads; allowed: a model of the same network"
    )
    assert not (tmp_path / "config.json").exists()


def test_other_latents(source, tmp_path):
    origin = shutil.copytree(source, tmp_path / "origin")
    write_latent_space(origin, SD_VAE, resuming=False)
    with pytest.raises(ConfigError, match="which was trained on other latents than those of"):
        train(tiny(None), tmp_path / "run", init_from=str(origin))


def test_a_start_that_failed_is_forgotten(tmp_path):
    (tmp_path / "origin.json").write_text("{}")
    prepare_origin(None, epath.Path(tmp_path), resuming=False)
    assert not (tmp_path / "origin.json").exists()


def test_no_such_model(tmp_path, capsys):
    flags = ["--config=configs/digits.py", f"--workdir={tmp_path / 'run'}"]
    assert train_command.main([*flags, "--init_from=runs of mine"]) == 2
    assert capsys.readouterr().err == (
        "error: init_from is 'runs of mine', which is not a folder; allowed: a run, an exported "
        "folder, or a Hugging Face name such as 'user/name'\n"
    )


def test_other_classes_and_another_size(source, tmp_path, capsys):
    """Of 10 digits, 3 are kept by number and in another order; what was chosen goes before."""
    config = tiny(None, **STILL)
    model = dataclasses.replace(config.model, num_classes=3)
    data = dataclasses.replace(config.data, classes=(7, 0, 4))
    config = dataclasses.replace(config, model=model, data=data)
    train(config, tmp_path, init_from=str(source), init_classes={"4": "9"})
    said = "Label embeddings: 7, 0 kept; 4 from 9.\n"
    assert said in capsys.readouterr().out
    old, new = load_run(source, ema=True).parameters, load_run(tmp_path, ema=False).parameters
    for path in old:
        expected = old[path][np.array([7, 0, 9, 10])] if path == "label.table" else old[path]
        np.testing.assert_allclose(new[path], expected, atol=1e-29, err_msg=path)

    again = {"init_from": str(source)}
    train(config, tmp_path, **again)
    train(config, tmp_path, **again, init_classes={"4": "9"})
    with pytest.raises(ConfigError, match=r"init_classes is 4=8, .* started with 4=9; allowed"):
        train(config, tmp_path, **again, init_classes={"4": "8"})


def test_another_size_is_told(source, tmp_path, capsys):
    config = tiny(None)
    larger = dataclasses.replace(
        config, model=dataclasses.replace(config.model, image_size=16, position="sincos")
    )
    find_start(InitFrom(str(source)), larger, build_sources(config.data, config.model))
    assert f"The image size was 8 in {source}; it is 16. " in capsys.readouterr().out


def test_the_mean_is_of_classes_that_had_images(source, tmp_path):
    origin = shutil.copytree(source, tmp_path / "origin")
    write_classes(origin, Classes(tuple("abcdefghij"), (5, 0, 3) + (0,) * 7))
    config = tiny(None)
    start = find_start(InitFrom(str(origin)), config, build_sources(config.data, config.model))
    assert start.rows.learnt == (0, 2)


def test_classes_without_a_model(tmp_path):
    with pytest.raises(ConfigError, match="init_classes is given without init_from; allowed"):
        train(tiny(None), tmp_path / "run", init_classes={"1": "2"})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["fox", "fox=", "=dog", "fox=dog,fox=cat", "fox=dog,"])
def test_pairs_of_classes(text, tmp_path, capsys):
    flags = ["--config=configs/digits.py", f"--workdir={tmp_path / 'run'}", "--init_from=x"]
    with pytest.raises(SystemExit, match="2"):
        train_command.main([*flags, f"--init_classes={text}"])
    assert "allowed: NEW=OLD with commas" in capsys.readouterr().err
