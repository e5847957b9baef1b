"""Learning from a teacher (`train.distill`): what it adds to the loss, when it ends, and whose."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from dit_moe.config import ConfigError, DistillConfig, MeshConfig, RectifiedFlowConfig
from dit_moe.config.files import load_file
from dit_moe.devices.mesh import build_mesh
from dit_moe.models.parameters import abstract_parameters, functional, init_parameters
from dit_moe.models.prediction import Prediction
from dit_moe.plan.estimate import estimate
from dit_moe.plan.flops import image_flops
from dit_moe.report.history import told_history
from dit_moe.runs.folder import write_config
from dit_moe.runs.loading import load_run
from dit_moe.runs.state import init_state
from dit_moe.runs.teacher import held_as, load_teacher, taught_steps, teacher_model
from dit_moe.training.distillation import StagedStep, with_teacher
from dit_moe.training.loop import train
from dit_moe.training.step import build_step
from dit_moe.training.taken_layers import check_layers, take_layers
from tests.tiny import DIT_MOE, MOE_PLUS_PLUS, PROMOE, tiny
from tests.training.test_training import batch, one_device

FAST = {"learning_rate": 1e-2, "steps": 4, "checkpoint_every": 1, "keep_checkpoints": 4}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("distillation") / "teacher"
    train(tiny(DIT_MOE, learning_rate=1e-2, steps=2), workdir)
    return workdir


def student(distill, **settings):
    config = tiny(DIT_MOE, **{**FAST, "distill": distill, **settings})
    return dataclasses.replace(config, model=dataclasses.replace(config.model, depth=1))


def taught(teacher, **settings):
    return student(DistillConfig(str(teacher), stop_at=0.5), **settings)


@pytest.fixture(scope="module")
def run(teacher):
    workdir = teacher.with_name("student")
    train(taught(teacher), workdir)
    return workdir


def assert_same(workdir, other):
    for ema in (False, True):
        actual, expected = (load_run(w, ema).parameters for w in (workdir, other))
        jax.tree.map(np.testing.assert_array_equal, actual, expected)


def network(weight):
    """Twice as many channels as the input, of which the second half is no matter."""

    def predict(x, t_N, y_N):
        return Prediction(jnp.concatenate([weight * x, x], axis=-1), (), {"balance": x.sum()})

    return predict


def test_the_distance_and_its_gradient():
    random = np.random.default_rng(0)
    x = random.normal(size=(3, 4, 4, 2)).astype("f")
    own, theirs = (random.normal(size=(4, 4, 2)).astype("f") for _ in range(2))

    def loss(own, theirs):
        predict = with_teacher(network(own), network(theirs), 0.5)
        return predict(x, jnp.zeros(3), jnp.zeros(3, int)).losses

    losses = loss(own, theirs)
    expected = 0.5 * np.mean(
        [(own[i] * v - theirs[i] * v) ** 2 for k in x for i, v in np.ndenumerate(k)]
    )
    np.testing.assert_allclose(losses["distillation"], expected, rtol=1e-5)
    np.testing.assert_allclose(losses["balance"], x.sum(), rtol=1e-5)
    of_own, of_theirs = jax.grad(lambda *p: loss(*p)["distillation"], (0, 1))(own, theirs)
    np.testing.assert_allclose(of_own, (own - theirs) * (x**2).sum(0) / x.size, rtol=1e-4)
    assert not of_theirs.any()
    of_itself = jax.grad(lambda p: loss(p, own)["distillation"])(own)
    assert loss(own, own)["distillation"] == 0
    assert not of_itself.any()


def test_a_network_that_learns_from_itself():
    """The step is the plain one."""
    config = tiny(DIT_MOE, distill=DistillConfig("itself", 100.0), batch_size=8, accumulation=2)
    model, objective, seed = config.model, config.objective, config.seed
    state = init_state(model, config.train, one_device(), seed)
    random = np.random.default_rng(0)
    away = {p: v + random.normal(0, 0.1, v.shape).astype("f") for p, v in state.parameters.items()}
    state = dataclasses.replace(state, parameters=away)
    plain = jax.jit(build_step(model, objective, config.train, seed))
    own = jax.jit(build_step(model, objective, config.train, seed, model))
    expected, before = plain(state, *batch(8))
    actual, metrics = own(state, *batch(8), away)
    assert metrics["distillation"] < 1e-9
    np.testing.assert_allclose(metrics["loss"], before["loss"], rtol=1e-6)
    for path, p in expected.parameters.items():
        np.testing.assert_allclose(actual.parameters[path], p, atol=2e-5, err_msg=path)
    _, metrics = own(state, *batch(8), {path: 1.1 * p for path, p in away.items()})
    assert metrics["distillation"] > 1e-3


def test_after_the_last_step_with_it_the_run_is_a_plain_one(run, tmp_path):
    plain = at_step(run, 2, tmp_path / "plain")
    write_config(student(None), epath.Path(plain), resuming=False)
    train(student(None), plain)
    assert_same(plain, run)
    # The teacher did change what came before.
    other = tmp_path / "other"
    train(student(None), other)
    assert not np.array_equal(*(load_run(w).parameters["patch_out.bias"] for w in (other, run)))


def test_with_nothing_to_learn_from_it(tmp_path):
    """A coefficient of 0 is a plain run, which reads no teacher."""
    config = student(DistillConfig("not there", 0.0), steps=2)
    train(config, tmp_path / "none")
    train(student(None, steps=2), tmp_path / "plain")
    assert_same(tmp_path / "none", tmp_path / "plain")
    assert not (tmp_path / "none" / "teacher.json").exists()


def test_the_metrics(run):
    rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    column = rows[0].index("distillation")
    assert [bool(row[column]) for row in rows[1:]] == [True, True, False, False]


def at_step(run, step, folder):
    """A copy of the run as it was after a step."""
    shutil.copytree(run, folder)
    for later in range(step + 1, 5):
        shutil.rmtree(folder / "checkpoints" / str(later))
    return folder


def test_it_resumes_with_its_teacher(run, teacher, tmp_path, capsys):
    """To the bit, wherever that lies now; another one is refused."""
    workdir, moved = at_step(run, 1, tmp_path / "run"), shutil.copytree(teacher, tmp_path / "moved")
    before = (workdir / "config.json").read_text()
    with pytest.raises(ConfigError) as error:
        train(taught(run), workdir)
    assert str(error.value) == (
        f"config.train.distill.teacher is '{run}' at step 4, but workdir '{workdir}' holds a run "
        f"whose teacher was '{teacher}' at step 2, with other parameters; allowed: that teacher as "
        "it was, or another --workdir"
    )
    assert (workdir / "config.json").read_text() == before
    capsys.readouterr()
    train(taught(moved), workdir)
    assert f"Learns from {moved} at step 2, up to step 2." in capsys.readouterr().out
    assert_same(workdir, run)
    assert told_history(workdir).origin == f"Learnt from {teacher} at step 2."


def test_after_the_stop_it_is_read_no_more(run, tmp_path, capsys):
    workdir = at_step(run, 3, tmp_path / "run")
    train(taught(run), workdir)  # no matter whose network that is
    assert "Learns from" not in capsys.readouterr().out
    assert_same(workdir, run)


def test_one_device_and_eight(teacher):
    config = taught(teacher, batch_size=8)
    found = []
    model = teacher_model(config)
    for sizes in ({"data": 1}, {"data": 2, "fsdp": 2, "expert": 2}):
        mesh = one_device() if sizes == {"data": 1} else build_mesh(MeshConfig(**sizes))
        with jax.set_mesh(mesh):
            _, teaching = load_teacher(config, model, mesh)
            state = init_state(config.model, config.train, mesh, config.seed)
            arguments = config.model, config.objective, config.train, config.seed, model
            step, losses = jax.jit(build_step(*arguments)), []
            for _ in range(3):
                state, metrics = step(state, *batch(8), teaching)
                losses += [float(metrics["loss"]), float(metrics["distillation"])]
        found.append(losses)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


@pytest.mark.parametrize("moe", [PROMOE, DIT_MOE, MOE_PLUS_PLUS])
def test_what_is_held_in_the_type_of_the_computation(moe):
    """Only what the network casts anyway: the same bits, of fewer bytes."""
    model = dataclasses.replace(tiny(moe).model, dtype="bfloat16")
    random = np.random.default_rng(0)
    whole = {
        path: random.normal(0, 0.2, p.shape).astype("f")
        for path, p in abstract_parameters(model).items()
    }
    held = {path: p.astype(held_as(path, model.dtype)) for path, p in whole.items()}
    assert sum(p.nbytes for p in held.values()) < 0.75 * sum(p.nbytes for p in whole.values())
    x, y = batch(4)
    predict = jax.jit(lambda p: functional(model)(p)(x, jnp.full(4, 0.3), y).value)
    np.testing.assert_array_equal(predict(held), predict(whole))


def test_the_plan_counts_it(teacher):
    config = taught(teacher, batch_size=16)
    plan, plain = estimate(config, {}), estimate(student(None, batch_size=16), {})
    model = teacher_model(config)
    size = sum(4 * p.size for p in abstract_parameters(model).values())
    one, two = (estimate(taught(teacher, batch_size=b), {}).parts["teacher"] for b in (16, 32))
    assert plan.parts["teacher"] == one
    assert 2 * one - two == size  # beside what grows with the batch
    assert {k: v for k, v in plan.parts.items() if k != "teacher"} == plain.parts
    assert plan.flops_per_image == plain.flops_per_image
    added = plan.hardware_flops_per_image - plain.hardware_flops_per_image
    assert added == pytest.approx(image_flops(model).total)
    assert " GFLOPs a training image, and 0.000" in plan.sentence()
    assert "of its teacher up to step 2" in plan.sentence()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"objective": RectifiedFlowConfig(time_scale=1000)},
            "whose objective.time_scale is 1.0; allowed: a model with that of the run, 1000.0",
        ),
        (
            {"num_classes": 9},
            "whose model.num_classes is 10; allowed: a model with",
        ),
        ({"image_size": 16}, "whose model.image_size is 8; allowed"),
    ],
)
def test_a_teacher_of_something_else(teacher, change, said):
    config = taught(teacher)
    if "objective" in change:
        config = dataclasses.replace(config, **change)
    else:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, **change))
    with pytest.raises(ConfigError) as error:
        teacher_model(config)
    assert said in str(error.value)


def test_no_teacher_there(tmp_path):
    with pytest.raises(ConfigError, match=r"^config.train.distill.teacher is '.*', which is not a"):
        train(taught(tmp_path / "none"), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
    with pytest.raises(ConfigError, match=r"config.train.distill.teacher is ''; .* at least 1"):
        load_file("configs/digits.py:dit", ["--config.train.distill.coefficient=2"])
    config = load_file("configs/digits.py:dit", ["--config.train.distill.teacher=runs/a"])
    assert config.train.distill == DistillConfig("runs/a")
    assert taught_steps(config.train) == 840


def test_the_steps_of_both_kinds():
    done = []

    def step(name):
        return lambda state, *rest: (state + 1, done.append((name, *rest)) or {})

    staged = StagedStep(step("taught"), step("plain"), {"w": 0}, 2)
    state = 0
    for number in range(3):
        state, metrics = staged(state, number)
        assert ("distillation" in metrics) == (number == 2)
    assert done == [("taught", 0, {"w": 0}), ("taught", 1, {"w": 0}), ("plain", 2)]
    assert state == 3


def test_blocks_that_are_taken():
    config = tiny(PROMOE)
    deep = dataclasses.replace(config.model, depth=6)
    old = init_parameters(deep, jax.random.key(0))
    taken = take_layers(old, (4, 1), deep, config.model)
    for path, p in abstract_parameters(config.model).items():
        assert taken[path].shape == p.shape
        before = old[path]
        if path.startswith("trunk."):
            before = before[2:3] if ".blocks.0." in path else before[:1]
        np.testing.assert_array_equal(taken[path], before, err_msg=path)
    check_layers((4, 1), deep, config.model)
    same = take_layers(old, range(6), deep, deep)
    jax.tree.map(np.testing.assert_array_equal, same, old)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ((0, 1, 2), "init_layers has 3 blocks; allowed: config.model.depth 2"),
        ((0, 7), "init_layers has 7; allowed: 0 to 5, the blocks of the model to start from"),
        ((1, 1), "init_layers has 1 for block 0, which has another feed-forward or mixture; allow"),
    ],
)
def test_blocks_that_cannot_be_taken(layers, said):
    model = tiny(PROMOE).model
    with pytest.raises(ConfigError, match=said):
        check_layers(layers, dataclasses.replace(model, depth=6), model)


def test_a_student_that_starts_from_a_block_of_its_teacher(teacher, tmp_path):
    config = student(DistillConfig(str(teacher)), steps=1, learning_rate=1e-30)
    with pytest.raises(ConfigError, match=r"differs from config.model in model.depth; allowed: a"):
        train(config, tmp_path / "run", init_from=str(teacher))
    train(config, tmp_path / "run", init_from=str(teacher), init_layers=(1,))
    old, new = (
        load_run(w, ema).parameters for w, ema in ((teacher, True), (tmp_path / "run", False))
    )
    for path, p in new.items():
        before = old[path][1:] if path.startswith("trunk.") else old[path]
        np.testing.assert_allclose(p, before, atol=1e-7, err_msg=path)
    with pytest.raises(ConfigError, match=r"init_layers is 0, but workdir .* started with 1; all"):
        train(config, tmp_path / "run", init_from=str(teacher), init_layers=(0,))
    with pytest.raises(ConfigError, match="init_layers is given without init_from; allowed: both"):
        train(config, tmp_path / "run", init_layers=(0,))
