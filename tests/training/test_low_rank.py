"""Low-rank additions (`train.lora`): what learns, what stays, and how they leave a run."""

import dataclasses
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from dit_moe.config import ConfigError, LowRankConfig, MeshConfig, TrainConfig
from dit_moe.config.files import load_file
from dit_moe.convert.export import export_run
from dit_moe.devices.mesh import build_mesh
from dit_moe.models.low_rank import A, B, is_addition, merge, shapes_and_axes
from dit_moe.plan.estimate import estimate
from dit_moe.plan.memory import abstract_mesh
from dit_moe.runs.loading import load_kept, load_run
from dit_moe.runs.state import abstract_state, init_state, start_state
from dit_moe.training.loop import train
from dit_moe.training.step import build_step
from tests.tiny import DIT_MOE, tiny
from tests.training.test_training import batch, one_device

LORA = LowRankConfig(
    rank=2, alpha=6, patterns=("*.attention.*", "*.experts.*"), whole=("label.table",)
)
QKV = "trunk.segments.0.blocks.0.attention.qkv.kernel"
EXPERTS = "trunk.segments.0.blocks.0.feed_forward.experts.w_out"
SETTINGS = {"weight_decay": 0.1, "learning_rate": 1e-2}


def tuned(**settings):
    return tiny(DIT_MOE, **{**SETTINGS, "steps": 3, "lora": LORA, **settings})


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("base") / "run"
    train(tiny(DIT_MOE, steps=2, learning_rate=1e-2), workdir)
    return workdir


@pytest.fixture(scope="module")
def run(base):
    workdir = base.with_name("tuned")
    train(tuned(), workdir, init_from=str(base))
    return workdir


def test_pairs_of_the_matrices_that_are_named():
    shapes, axes = shapes_and_axes(tiny(DIT_MOE).model, LORA)
    matrices = {path.removesuffix(A) for path in shapes if path.endswith(A)}
    assert {path.removesuffix(B) for path in shapes if path.endswith(B)} == matrices
    assert {path.split("blocks.0.")[1] for path in matrices} == {
        "attention.out.kernel",
        "attention.qkv.kernel",
        "feed_forward.experts.w_in",
        "feed_forward.experts.w_out",
        "feed_forward.shared.experts.w_in",
        "feed_forward.shared.experts.w_out",
    }
    assert shapes[QKV + A].shape == (2, 16, 2)
    assert shapes[QKV + B].shape == (2, 2, 48)
    # A pair for each expert, which lies with it.
    assert shapes[EXPERTS + A].shape == (2, 4, 16, 2)
    assert axes[EXPERTS + A] == (None, "expert", "mlp", None)
    assert axes[EXPERTS + B] == (None, "expert", None, "embed")


def test_at_the_start_nothing_is_added(base):
    config, network = tuned(), load_run(base).parameters
    copy = {path: jnp.copy(p) for path, p in network.items()}
    state = start_state(config.model, config.train, one_device(), copy, config.seed)
    for path, p in merge(state.parameters, LORA).items():
        np.testing.assert_array_equal(p, network[path], err_msg=path)
    a = np.asarray(state.parameters[EXPERTS + A])
    assert np.abs(a).max() <= 16**-0.5  # Kaiming's bound
    np.testing.assert_allclose(a.std(), (3 * 16) ** -0.5, rtol=0.2)
    assert not state.parameters[EXPERTS + B].any()


def test_the_sum():
    """W + alpha / rank a b, for each unit and expert, and its gradient."""
    random = np.random.default_rng(0)
    shapes = {"w": (2, 3, 4, 5), f"w{A}": (2, 3, 4, 2), f"w{B}": (2, 3, 2, 5)}
    parameters = {p: random.normal(size=shape).astype("f") for p, shape in shapes.items()}
    (merged,) = merge(parameters, LORA).values()
    for unit, expert in np.ndindex(2, 3):
        w, a, b = (p[unit, expert].astype(float) for p in parameters.values())
        np.testing.assert_allclose(merged[unit, expert], w + 6 / 2 * a @ b, atol=1e-5)
    check_grads(lambda p: jnp.sin(merge(p, LORA)["w"]).sum(), (parameters,), order=1, modes="rev")


def test_the_base_keeps_its_bits(base, run):
    before = load_run(base).parameters
    step, kept = load_kept(run, tuned(), ema=True)
    assert step == 3
    for path, p in before.items():
        assert np.array_equal(kept[path], p) == (path != "label.table"), path
    assert kept[EXPERTS + B].all(axis=-1).any()
    # All that the additions reach has moved, and nothing else.
    moved = {p for p, v in load_run(run).parameters.items() if not np.array_equal(v, before[p])}
    assert moved == {"label.table"} | {p.removesuffix(A) for p in kept if p.endswith(A)}


def test_state_for_what_learns_alone():
    config = tuned()
    state = abstract_state(config.model, config.train, one_device())
    learning = {p for p in state.parameters if is_addition(p)} | {"label.table"}
    moments = optax.tree.get(state.optimizer, "ScaleByAdamState")
    assert state.ema.keys() == moments.mu.keys() == moments.nu.keys() == learning
    assert learning < state.parameters.keys()


@pytest.mark.parametrize("shape", [{}, {"data": 2, "fsdp": 2, "expert": 2}])
def test_the_plan_counts_its_bytes(shape):
    config = tuned()
    mesh = abstract_mesh(shape)
    state = abstract_state(config.model, config.train, mesh)  # pyright: ignore
    real = sum(
        math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize
        for a in jax.tree.leaves(state)
    )
    plan, whole = estimate(config, mesh.shape), estimate(tiny(DIT_MOE), mesh.shape)
    stored = sum(plan.parts[name] for name in ("parameters", "EMA", "optimizer"))
    assert stored + 3 * 4 == real  # the step's number and two of the optimiser
    assert plan.parts["parameters"] > whole.parts["parameters"]
    for part in ("EMA", "optimizer", "gradients"):
        assert 0 < plan.parts[part] < whole.parts[part] / 2
    # In the place of gradients of all: the matrices with their additions, and their gradients.
    assert 0 < plan.parts["merged"] < 2 * whole.parts["gradients"]


def test_it_resumes_to_the_bit(base, run):
    workdir = base.with_name("in-two-goes")
    for steps in (2, 3):
        train(tuned(steps=steps), workdir, init_from=str(base))
    for name in ("parameters", "ema"):
        actual, expected = (load_kept(w, tuned(), ema=name == "ema")[1] for w in (workdir, run))
        jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("ema", [True, False])
def test_merged_and_apart_are_the_run(base, run, tmp_path, ema):
    expected = load_run(run, ema).parameters
    for form in ("safetensors", "lora"):
        assert export_run(run, tmp_path / form, form, ema=ema) == ema
        found = load_run(tmp_path / form, ema)
        assert found.parameters.keys() == expected.keys()
        for path, p in expected.items():
            np.testing.assert_allclose(found.parameters[path], p, atol=1e-7, err_msg=path)
        with pytest.raises(ConfigError, match="alone, and the"):
            load_run(tmp_path / form, not ema)
    sizes = [
        sum(file.stat().st_size for file in (tmp_path / form).glob("*.safetensors"))
        for form in ("lora", "safetensors")
    ]
    assert sizes[0] < sizes[1] / 2


def test_additions_on_several_devices(base, run, tmp_path):
    export_run(run, tmp_path / "apart", "lora")
    config = dataclasses.replace(tuned(), mesh=MeshConfig(data=2, fsdp=2, expert=2))
    state = abstract_state(config.model, config.train, build_mesh(config.mesh))
    like = {path: p for path, p in state.parameters.items() if not is_addition(path)}
    expected = load_run(run).parameters
    for folder in (run, tmp_path / "apart"):
        for path, p in load_run(folder, like=like).parameters.items():
            np.testing.assert_allclose(p, expected[path], atol=1e-6, err_msg=path)


def test_another_base(base, run, tmp_path):
    folder = tmp_path / "apart"
    export_run(run, folder, "lora")
    record = folder / "lora.json"
    told = json.loads(record.read_text())
    assert told["base"] == str(base)

    def with_base(path):
        record.write_text(json.dumps({**told, "base": str(path)}))

    moved = shutil.copytree(base, tmp_path / "moved")
    with_base(moved)
    assert load_run(folder).parameters.keys() == load_run(base).parameters.keys()
    with_base(run)
    with pytest.raises(ConfigError) as error:
        load_run(folder)
    assert str(error.value) == (
        f"{folder} holds additions to another model than '{run}': 7 of its parameters differ, such "
        f"as label.table; allowed in base of {record}: the folder of the model, as it was, that "
        "the run started from"
    )
    with_base(tmp_path / "gone")
    with pytest.raises(
        ConfigError, match=r"^base of .*lora\.json is '.*gone', which is not a fold"
    ):
        load_run(folder)
    with pytest.raises(ConfigError, match="is no run that learnt additions to a model"):
        export_run(base, tmp_path / "no", "lora")
    assert not (tmp_path / "no").exists()


def test_one_device_and_eight():
    config = tuned(batch_size=8, accumulation=1)
    found = []
    for sizes in ({"data": 1}, {"data": 2, "fsdp": 2, "expert": 2}):
        mesh = one_device() if sizes == {"data": 1} else build_mesh(MeshConfig(**sizes))
        with jax.set_mesh(mesh):
            state = init_state(config.model, config.train, mesh, config.seed)
            step = jax.jit(build_step(config.model, config.objective, config.train, config.seed))
            losses = []
            for _ in range(3):
                state, metrics = step(state, *batch(8))
                losses.append(float(metrics["loss"]))
        found.append((losses, jax.device_get(state.parameters)))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    for path, p in found[0][1].items():
        np.testing.assert_allclose(found[1][1][path], p, atol=2e-5, err_msg=path)


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        (
            {"patterns": "*.atention.*"},
            r"patterns has '\*.atention.\*', which matches no matrix; n",
        ),
        ({"patterns": "*.attention.qkv.bias"}, "which matches no matrix; near it are"),
        ({"whole": "labels"}, "whole has 'labels', which matches no parameter; near it are label"),
        ({"rank": 17}, r"rank is 17 for trunk.*, a matrix of 16 x 16; allowed: 1 to 16, or"),
        (
            {"whole": "*.qkv.kernel"},
            r"has trunk.*qkv.kernel both in patterns and in whole; allowed",
        ),
    ],
)
def test_what_does_not_fit(lora, said):
    with pytest.raises(ConfigError, match=said):
        shapes_and_axes(tiny(None).model, LowRankConfig(**lora))


def test_settings_that_do_not_go_together(tmp_path):
    with pytest.raises(ValueError, match=r"freeze is trunk\.\* with lora, which freezes all but"):
        TrainConfig(freeze=("trunk.*",), lora=LORA)
    with pytest.raises(ValueError, match=r"post_hoc_ema is 0\.1 with lora; allowed: none"):
        TrainConfig(post_hoc_ema=(0.1,), lora=LORA)
    with pytest.raises(ConfigError, match="lora is given without init_from; allowed: both"):
        train(tuned(), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_one_field_on_the_command_line_turns_it_on():
    config = load_file("configs/digits.py:dit", ["--config.train.lora.rank=4"])
    assert config.train.lora == LowRankConfig(rank=4)
