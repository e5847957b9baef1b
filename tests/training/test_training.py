"""The training step, resuming, and the loop around them."""

import csv
import dataclasses
import fcntl
import functools
import json
import os
import re
import shutil
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from dit_moe.config import (
    Config,
    ConfigError,
    GuidanceConfig,
    MeshConfig,
    PrototypeRouterConfig,
    SampleConfig,
    TopKRouterConfig,
    TrainConfig,
)
from dit_moe.config.files import to_json
from dit_moe.data.classes import Classes, count_classes, read_classes
from dit_moe.data.sources import ClassSubset, Pictures, build_sources
from dit_moe.devices import hosts
from dit_moe.devices.mesh import batch_sharding, build_mesh
from dit_moe.models.parameters import functional
from dit_moe.runs.checkpoints import Checkpoints
from dit_moe.runs.ema_start import start_share
from dit_moe.runs.loading import load, load_run
from dit_moe.runs.optimizer import build_optimizer, build_schedule
from dit_moe.runs.state import TrainState, abstract_state, init_state
from dit_moe.storage import images
from dit_moe.training import session
from dit_moe.training.grids import GridSampler, grid_request
from dit_moe.training.loop import train
from dit_moe.training.step import build_step
from tests.tiny import DIT_MOE, PROMOE, tiny
from tests.training.event_files import pictures


def batch(size: int) -> tuple[jax.Array, jax.Array]:
    x_NxHxWxC = jax.random.normal(jax.random.key(5), (size, 8, 8, 1))
    return x_NxHxWxC, jnp.arange(size, dtype=jnp.int32) % 10


def run_steps(config: Config, mesh: jax.sharding.Mesh, steps: int = 2):
    with jax.set_mesh(mesh):
        state = init_state(config.model, config.train, mesh, config.seed)
        step = jax.jit(
            build_step(config.model, config.objective, config.train, config.seed), donate_argnums=0
        )
        for _ in range(steps):
            arrays = jax.device_put(batch(config.train.batch_size), batch_sharding(mesh))
            state, metrics = step(state, *arrays)
    return state, jax.device_get(metrics)


def assert_close(actual: TrainState, expected: TrainState, tolerance: float) -> None:
    for path, value in expected.parameters.items():
        np.testing.assert_allclose(
            actual.parameters[path], value, rtol=tolerance, atol=tolerance, err_msg=path
        )


def assert_same(actual: TrainState, expected: TrainState) -> None:
    """To the bit, in every part of the state."""
    leaves = jax.tree.leaves_with_path(expected)
    for (path, value), own in zip(leaves, jax.tree.leaves(actual), strict=True):
        np.testing.assert_array_equal(own, value, err_msg=jax.tree_util.keystr(path))


def with_model(config: Config, **settings: Any) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **settings))


def one_device() -> jax.sharding.Mesh:
    return build_mesh(MeshConfig(), jax.devices()[:1])


@pytest.mark.parametrize(
    ("moe", "mesh"),
    [
        (PROMOE, MeshConfig(data=2, fsdp=4)),
        (DIT_MOE, MeshConfig(data=2, fsdp=4)),
        (DIT_MOE, MeshConfig(data=8)),
    ],
)
def test_eight_devices_give_the_numbers_of_one(moe, mesh):
    """All metrics of two steps to 1e-5, and the parameters, whose gradients Adam divides by their
    own size, rounding as well, to 1e-4. What each mixture computes: test_mesh.py."""
    config = tiny(moe, batch_size=16, beta1=0.0)
    expected, expected_metrics = run_steps(config, one_device())
    actual, metrics = run_steps(config, build_mesh(mesh))
    assert_close(actual, expected, 1e-4)
    for name, value in expected_metrics.items():
        check = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6, err_msg=name)
        jax.tree.map(check, metrics[name], value)


def test_state_is_sharded_by_the_table():
    config = tiny()
    mesh = build_mesh(MeshConfig(data=2, fsdp=4))
    state, _ = run_steps(config, mesh, steps=1)
    adam = state.optimizer[1][0]
    for tree in (state.parameters, state.ema, adam.mu, adam.nu):
        kernel = tree["trunk.segments.0.blocks.0.attention.qkv.kernel"]  # [group, embed, heads]
        assert kernel.addressable_shards[0].data.shape == (1, 4, 48)
    assert state.step.sharding.is_fully_replicated


def test_first_moment_in_bfloat16():
    exact = optax.adamw(1e-3, b1=0.9, b2=0.999, weight_decay=0.0)
    halved = build_optimizer(TrainConfig(first_moment_dtype="bfloat16", learning_rate=1e-3))
    parameters = {"w": jnp.zeros(1000)}
    states = [optimizer.init(parameters) for optimizer in (exact, halved)]
    for seed in range(5):
        gradient = {"w": 1 + jax.random.normal(jax.random.key(seed), (1000,))}
        updates = []
        for i, optimizer in enumerate((exact, halved)):
            update, states[i] = optimizer.update(gradient, states[i], parameters)
            updates.append(update["w"])
    adam = optax.tree.get(states[1], "ScaleByAdamState")
    assert adam.mu["w"].dtype == jnp.bfloat16
    assert adam.nu["w"].dtype == jnp.float32
    # Five roundings to eight significant bits.
    assert np.abs(updates[1] - updates[0]).max() < 5 * 2**-8 * np.abs(updates[0]).max()


@pytest.mark.parametrize(
    "moe",
    [
        # Auxiliary losses are no sums over images, so they are left out of the comparison.
        dataclasses.replace(PROMOE, router=PrototypeRouterConfig(contrastive_coef=0.0)),
        dataclasses.replace(DIT_MOE, router=TopKRouterConfig(balance_coef=0.0)),
        None,
    ],
)
def test_accumulation_equals_the_big_batch(moe):
    expected, _ = run_steps(tiny(moe, batch_size=16), one_device())
    actual, _ = run_steps(tiny(moe, batch_size=16, accumulation=4), one_device())
    assert_close(actual, expected, 2e-5)


def test_step_against_optax_by_hand():
    """Gradient of the loss on the same draws, clipped AdamW, EMA: written out."""
    config = dataclasses.replace(tiny(None, batch_size=4), seed=3)
    state, metrics = run_steps(config, one_device(), steps=1)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=0.0))
    initial = init_state(config.model, config.train, one_device(), config.seed)
    before = initial.parameters

    def loss(parameters):
        key = jax.random.fold_in(jax.random.key(3), 0)
        x, y = batch(4)
        total = 0.0
        for i in range(4):
            label_key, key_i = jax.random.split(jax.random.fold_in(key, i))
            time_key, noise_key = jax.random.split(key_i)
            t = jax.nn.sigmoid(jax.random.normal(time_key))
            noise = jax.random.normal(noise_key, x[i].shape)
            label = jnp.where(jax.random.bernoulli(label_key, 0.1), 10, y[i])
            z = (1 - t) * x[i] + t * noise
            value = functional(config.model)(parameters)(z[None], t[None], label[None]).value[0]
            total += jnp.mean((value - (noise - x[i])) ** 2)
        return total / 4

    value, gradient = jax.jit(jax.value_and_grad(loss))(before)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], optax.tree.norm(gradient), rtol=1e-4)
    updates, _ = optimizer.update(gradient, optimizer.init(before), before)
    assert start_share(config.train, 1) == 0.9  # as below
    for path, after in optax.apply_updates(before, updates).items():
        np.testing.assert_allclose(state.parameters[path], after, atol=2e-5, err_msg=path)
        np.testing.assert_allclose(
            state.ema[path], 0.9 * before[path] + 0.1 * state.parameters[path], atol=1e-6
        )


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_schedule(schedule):
    rate = build_schedule(
        TrainConfig(steps=110, warmup_steps=10, learning_rate=2.0, schedule=schedule)
    )
    np.testing.assert_allclose([rate(0), rate(5), rate(10)], [0, 1, 2])
    expected = {"constant": [2, 2], "cosine": [1, 0], "linear": [1, 0]}[schedule]
    np.testing.assert_allclose([rate(60), rate(110)], expected, atol=1e-6)


def final_state(config: Config, workdir) -> TrainState:
    mesh = build_mesh(config.mesh)
    like = abstract_state(config.model, config.train, mesh)
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.restore(config.train.steps, like)


def interrupt_at(monkeypatch, step: int, by: signal.Signals = signal.SIGINT) -> None:
    """Sends a signal to this process as the batch of the given step is drawn."""
    from dit_moe.training import session

    original = session.device_batches

    def batches(sources, data, batch_size, seed, first_step, sharding):
        stream = original(sources, data, batch_size, seed, first_step, sharding)
        for number, item in enumerate(stream, start=first_step + 1):
            if number == step:
                os.kill(os.getpid(), by)
            yield item

    monkeypatch.setattr(session, "device_batches", batches)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    assert train(tiny(), workdir) is None
    return workdir


@pytest.fixture(scope="module")
def compiled_once():
    """The step of `tiny()`, for runs that need no compilation of their own."""
    config = tiny()
    return build_step(config.model, config.objective, config.train, config.seed)


@pytest.mark.parametrize("step", range(1, 6))
def test_resume_is_exact(step, tmp_path, monkeypatch, undisturbed, compiled_once):
    monkeypatch.setattr(session, "build_step", lambda *parts: compiled_once)
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        assert train(tiny(), tmp_path) == signal.SIGINT
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == step
    assert train(tiny(), tmp_path) is None
    assert_same(final_state(tiny(), tmp_path), final_state(tiny(), undisturbed))

    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows] == sorted({2, 4, 6, step})


@pytest.mark.usefixtures("in_a_terminal")
def test_averages_and_moments_on_the_host_change_no_number(tmp_path, monkeypatch):
    config = tiny(None, post_hoc_ema=(0.1,), sample_every=4)
    config = dataclasses.replace(config, sample=dataclasses.replace(config.sample, steps=2))
    on_host = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, averages_on_host=True, moments_on_host=True),
    )
    assert train(config, tmp_path / "device") is None
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3, by=signal.SIGHUP)
        assert train(on_host, tmp_path / "host") == signal.SIGHUP
    assert train(on_host, tmp_path / "host") is None
    expected = final_state(config, tmp_path / "device")
    actual = final_state(on_host, tmp_path / "host")
    moments = [a for a in jax.tree.leaves(actual.optimizer) if a.ndim]
    kept = jax.tree.leaves((actual.ema, actual.tracks, moments))
    kinds = {a.sharding.memory_kind for a in kept}
    assert kinds == {"pinned_host"}
    assert actual.parameters["patch_in.bias"].sharding.memory_kind != "pinned_host"
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(actual), jax.device_get(expected))
    grids = [tmp_path / name / "samples" / "step_00000004.png" for name in ("device", "host")]
    assert grids[0].read_bytes() == grids[1].read_bytes()


def test_an_interrupt_while_a_grid_is_drawn_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(GridSampler, "draw", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert train(tiny(sample_every=2), tmp_path) == signal.SIGINT
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 3


def test_a_csv_stopped_before_its_first_row(tmp_path):
    (tmp_path / "metrics.csv").touch()
    train(tiny(None, steps=1), tmp_path)
    assert len(list(csv.DictReader((tmp_path / "metrics.csv").open()))) == 1


def test_two_runs_in_one_workdir(tmp_path):
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="is in use by another run"):
            train(tiny(), tmp_path)


def test_a_first_start_that_failed_leaves_the_workdir_free(tmp_path):
    with pytest.raises(ConfigError, match="batch_size is 12"):
        train(tiny(batch_size=12), tmp_path)
    (tmp_path / "config.json").write_text(to_json(tiny(steps=5)))  # without a checkpoint
    train(tiny(None, steps=1), tmp_path)
    assert load_run(tmp_path).config == tiny(None, steps=1)


def test_run_folder(undisturbed):
    config = json.loads((undisturbed / "config.json").read_text())
    assert config["model"]["moe"]["router"]["name"] == "prototype"
    assert (undisturbed / "parameters.txt").read_text().count("router.prototypes") == 1
    assert list(undisturbed.glob("events.out.tfevents.*"))
    rows = list(csv.DictReader((undisturbed / "metrics.csv").open()))
    load_sum = sum(float(rows[-1][f"moe/load/layer00/expert{e:02d}"]) for e in range(5))
    assert abs(load_sum - 1) < 1e-4
    for name in ("loss", "mse", "routing_contrastive", "gradient_norm", "images_per_second"):
        assert float(rows[-1][name]) > 0
    assert float(rows[-1]["moe/prototype_similarity/layer00"]) < 1


def test_the_run_keeps_which_classes_its_data_have(undisturbed):
    (source,) = build_sources(tiny().data, tiny().model)
    classes = read_classes(undisturbed)
    assert classes == Classes(tuple("0123456789"), tuple(np.bincount(source.label).tolist()))
    subset = ClassSubset(source, (9, 3))
    with_gaps = count_classes([subset, Pictures(np.zeros((2, 8, 8, 1)), np.array([3, 1]), ("9",))])
    assert with_gaps.images == (classes.images[9], classes.images[3] + 1, 0, 1)
    assert with_gaps.learnt() == (0, 1, 3)


def test_grids_show_classes_that_the_data_have():
    config = with_model(tiny(None), num_classes=1000)
    assert set(grid_request(config, range(10)).classes) == set(range(10))
    assert grid_request(config, range(0, 1000, 3)).classes[-1] == 999
    assert grid_request(config, (7, 5)).labels().tolist() == [7, 5] * 8


def test_labels_that_guidance_needs_are_learnt(tmp_path, capsys):
    config = with_model(tiny(None, sample_every=2), label_dropout=0.0)
    config = dataclasses.replace(config, sample=SampleConfig(guidance=GuidanceConfig(scale=1.5)))
    message = "config.sample.guidance.scale is 1.5 with model.label_dropout 0"
    with pytest.raises(ConfigError, match=re.escape(message)):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    # Without grids nothing needs it yet.
    settings = dataclasses.replace(config.train, sample_every=0)
    config = dataclasses.replace(config, train=settings)
    assert session.grid_or_none(config, (0, 1)) is None
    assert message in capsys.readouterr().out


def test_an_average_that_still_is_its_start(undisturbed, tmp_path, capsys):
    assert load_run(undisturbed).start_share == start_share(tiny().train, 6) == 0.9**6
    said = capsys.readouterr().out
    assert f"{undisturbed}: The moving average of step 6 still is 53% the parameters" in said
    assert load_run(undisturbed, ema=False).start_share is None
    # One that was made afterwards is whole.
    shutil.copytree(undisturbed, tmp_path / "copy")
    (tmp_path / "copy" / "post_hoc_ema.json").touch()
    assert load_run(tmp_path / "copy").start_share is None
    assert capsys.readouterr().out == ""


def test_samples_that_are_no_pictures_end_no_training(capsys):
    with hosts.surviving("samples"):
        images.to_uint8(np.array([[0.0], [np.nan]]))
    assert "samples could not be written: 1 of 2 images" in capsys.readouterr().out


def test_loaded_model_is_the_saved_one(undisturbed):
    state = final_state(tiny(), undisturbed)
    x, y = batch(4)
    t = jnp.full(4, 0.5)
    for ema, parameters in ((True, state.ema), (False, state.parameters)):
        expected = functional(tiny().model)(parameters)(x, t, y).value
        np.testing.assert_allclose(load(undisturbed, ema=ema)(x, t, y).value, expected, atol=1e-6)


def test_reading_leaves_a_running_save_alone(tmp_path, undisturbed):
    shutil.copytree(undisturbed, tmp_path / "run")
    unfinished = tmp_path / "run" / "checkpoints" / "7.orbax-checkpoint-tmp"
    unfinished.mkdir()
    assert load_run(tmp_path / "run").step == 6
    assert unfinished.exists()
    with Checkpoints(tmp_path / "run", keep=3) as checkpoints:  # the trainer clears it away
        state = checkpoints.restore(6, final_state(tiny(), undisturbed))
        checkpoints.save(dataclasses.replace(state, step=state.step + 2))
        checkpoints.wait()
        assert checkpoints.latest_step() == 8
    assert not unfinished.exists()


def test_another_config_is_refused(undisturbed):
    told = (
        r"differs in train\.learning_rate \(was 0\.001, is 1\.0\): use the same config or another "
        r"--workdir, or name in --override_resume what is to change; allowed there: learning_rate, "
    )
    with pytest.raises(ConfigError, match=told):
        train(tiny(learning_rate=1.0), undisturbed)
    with pytest.raises(ConfigError, match=told):
        train(tiny(learning_rate=1.0), undisturbed, override_resume=("batch_size",))
    assert load_run(undisturbed).config == tiny()
    assert not (undisturbed / "history.jsonl").exists()


def test_a_lost_config_is_not_replaced_by_another(tmp_path, undisturbed):
    workdir = shutil.copytree(undisturbed, tmp_path / "run")
    (workdir / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"has checkpoints but no config\.json any longer"):
        train(tiny(learning_rate=1.0), workdir)
    assert not (workdir / "config.json").exists()
    # As the message says.
    (workdir / "config.json").write_text(to_json(tiny()))
    assert train(tiny(), workdir) is None


def test_other_records_are_refused(tmp_path, undisturbed):
    workdir = shutil.copytree(undisturbed, tmp_path / "run")
    source = build_sources(tiny().data, tiny().model)[0]
    other = Pictures(source[0]["image"][None], source.label[:1], source.classes)
    assert json.loads((workdir / "data.json").read_text()) == [source.digest] != [other.digest]
    (workdir / "data.json").write_text(json.dumps([other.digest]))
    with pytest.raises(ConfigError, match="was trained on other records"):
        train(tiny(), workdir)
    (workdir / "data.json").write_bytes(b"\xff")
    with pytest.raises(
        ConfigError, match=r"data\.json is not valid JSON: 'utf-8' codec.*; remove it"
    ):
        train(tiny(), workdir)


def test_more_steps_continue_the_run(tmp_path, undisturbed):
    assert train(tiny(steps=4), tmp_path) is None
    assert train(tiny(steps=6), tmp_path) is None
    expected, actual = final_state(tiny(), undisturbed), final_state(tiny(), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_old_checkpoints_are_removed_and_grids_drawn(tmp_path, capsys):
    config = tiny(None, steps=4, checkpoint_every=1, keep_checkpoints=2, sample_every=2)
    config = dataclasses.replace(config, sample=dataclasses.replace(config.sample, steps=2))
    train(config, tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]
    names = sorted(p.name for p in (tmp_path / "samples").iterdir())
    assert names == ["step_00000002.png", "step_00000004.png"]
    assert "step_00000002.png: The moving average of step 2 still is 81%" in capsys.readouterr().out
    shown = pictures(tmp_path)
    for step, name in zip((2, 4), names, strict=True):
        grid = np.asarray(Image.open(tmp_path / "samples" / name))
        np.testing.assert_array_equal(shown.pop(step), grid)
    assert not shown


def test_a_grid_that_a_kill_prevented_is_drawn_by_the_next_start(
    tmp_path, monkeypatch, undisturbed
):
    drawn = []

    def draw(self, state, path, classes):
        assert classes.numbers == tuple(range(10))
        drawn.append((int(state.step), path.name))
        path.parent.mkdir(exist_ok=True)
        path.touch()
        return Image.new("RGB", (4, 4))

    monkeypatch.setattr(GridSampler, "draw", draw)

    workdir = shutil.copytree(undisturbed, tmp_path / "run")
    for _ in range(2):
        train(tiny(sample_every=3), workdir)
        assert drawn == [(6, "step_00000006.png")]
        assert pictures(workdir).keys() == {6}
    shutil.rmtree(workdir / "samples")
    train(tiny(sample_every=4), workdir)  # at the end, though 6 is no multiple
    assert len(drawn) == 2


def test_batch_must_fit_the_devices(tmp_path):
    allowed = r"allowed: a multiple of 8, or, for a run that has begun, 1, 2, 3, 4, 6 devices"
    with pytest.raises(ConfigError, match=rf"batch_size is 12 .* {allowed}"):
        train(tiny(batch_size=12), tmp_path)
    with pytest.raises(ConfigError, match=r"config\.mesh is data 3 x fsdp 1 x expert 1 on 8"):
        train(dataclasses.replace(tiny(), mesh=MeshConfig(data=3)), tmp_path)


def test_the_compiled_step_does_not_grow_with_depth():
    """The time itself, which is noisy, is printed by benchmarks/compile_time.py."""

    def size(depth: int) -> int:
        config = tiny(DIT_MOE)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, depth=depth))
        mesh = one_device()
        with jax.set_mesh(mesh):
            state = init_state(config.model, config.train, mesh, config.seed)
            step = (
                jax.jit(build_step(config.model, config.objective, config.train, config.seed))
                .lower(state, *batch(16))
                .compile()
            )
        text = step.as_text()
        assert text
        return len(text)

    assert size(40) < 1.2 * size(4)
