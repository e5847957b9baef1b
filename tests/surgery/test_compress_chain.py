"""The command that compresses: steps by name, chains that go on, folders that all others read."""

from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic.dataclasses import dataclass

import dit_moe
from dit_moe.commands import compress as command
from dit_moe.commands import convert, sample
from dit_moe.config import Config, ConfigError
from dit_moe.config.distillation import DistillConfig
from dit_moe.config.rules import RULES, Listed
from dit_moe.data.sources import build_sources
from dit_moe.runs.fingerprint import digest
from dit_moe.runs.loading import load_run
from dit_moe.runs.tensor_files import read_safetensors
from dit_moe.surgery.compress import chain
from dit_moe.surgery.compress import train as stage
from dit_moe.surgery.compress.chain import compress
from dit_moe.surgery.compress.drop import DropSettings
from dit_moe.surgery.compress.methods import RECIPES, chosen_steps
from dit_moe.surgery.compress.record import read_compressed, size_of
from dit_moe.surgery.compress.steps import (
    STEPS,
    Done,
    Model,
    StepSettings,
    apply_step,
    parse_step,
    register_step,
    step_text,
)
from dit_moe.training.origin import InitFrom, find_start
from tests.analysis.fresh_run import write_fresh_run
from tests.surgery.compressing import model_of, shown
from tests.tiny import PROMOE, tiny

MODEL = model_of(PROMOE)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """ProMoE with 4 routed experts in its one layer, an unconditional one, and a shared one."""
    return write_fresh_run(tmp_path_factory.mktemp("runs") / "run", tiny(PROMOE))


@pytest.fixture(scope="module")
def small(run):
    """The same with 2 experts, by a chain of two steps."""
    output = run.parent / "small"
    steps = ["drop:keep=3,by=random", "drop:keep=2,by=random,seed=1"]
    assert command.main([f"--workdir={run}", f"--output={output}", "--steps", *steps]) == 0
    return output


def lot(keep: int, seed: int = 0) -> DropSettings:
    return DropSettings(keep=keep, by="random", seed=seed)


def quiet(_: str) -> None:
    pass


def test_steps_by_name():
    (step,) = chosen_steps(["drop:keep=6,by=random,seed=3"])
    assert step == lot(6, seed=3)
    assert parse_step(step_text(step)) == step


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("dorp:keep=2", "name is 'dorp'; allowed: 'drop'"),
        ("drop", "0 are given"),
        ("drop:", "allowed: NAME or NAME:KEY=VALUE"),
        ("drop:keep", "'keep' says nothing"),
        ("drop:keep=2,keep=3", "has keep twice"),
        ("drop:keep=0", "keep is '0'"),
        ("drop:keep=2,name=x", "has name twice"),
        ("drop:keep=2,by=luck", "by is 'luck'"),
        ("drop:keep=2,kept=2", "kept is not a field"),
    ],
)
def test_a_step_that_is_none_is_one_sentence(text, told):
    with pytest.raises(ConfigError, match=f".*{told}"):
        parse_step(text)


def test_recipes(monkeypatch):
    for recipe in RECIPES:
        assert chosen_steps([], recipe) == tuple(map(parse_step, RECIPES[recipe]))
    monkeypatch.setitem(RECIPES, "half", ("drop:keep=2,by=random",))
    assert chosen_steps([], "half") == (lot(2),)
    for texts, recipe in (([], None), (["drop:keep=2"], "half"), ([], "third")):
        with pytest.raises(ConfigError, match="allowed: "):
            chosen_steps(texts, recipe)


def test_a_step_of_ones_own():
    @dataclass(frozen=True, config=RULES, kw_only=True)
    class FadeSettings(StepSettings):
        name: Literal["fade"] = "fade"
        by: Listed[float] = (0.5,)

    @register_step(FadeSettings)
    def fade(model: Model, settings: FadeSettings, calibration: object) -> Done:
        assert calibration is None
        factor = np.float32(np.prod(settings.by))
        faded = {path: factor * value for path, value in model.parameters.items()}
        return Done(model.of(model.config.model, faded), {"by": settings.by})

    try:
        step = parse_step("fade:by=0.5,0.25")
        assert step_text(step) == "fade:by=0.5,0.25"
        done = apply_step(MODEL, step, None)
        for path, value in done.model.parameters.items():
            np.testing.assert_array_equal(value, 0.125 * MODEL.parameters[path])
        with pytest.raises(ValueError, match="are not those of the network"):
            MODEL.of(MODEL.config.model, {**MODEL.parameters, "more": np.zeros(1)})
    finally:
        STEPS._classes.pop("fade")


def test_the_folder_is_a_model_like_any_other(small, tmp_path):
    model = dit_moe.load(small)
    (mixture,) = model.config.mixtures
    assert (mixture.num_experts, mixture.total_experts) == (2, 3)
    value = model(jnp.zeros((1, 8, 8, 1)), jnp.zeros(1), jnp.array([3])).value
    assert np.isfinite(value).all()
    again = tmp_path / "again"
    assert convert.main([f"--workdir={small}", f"--output={again}"]) == 0
    a, b = load_run(small), load_run(again)
    assert a.config == b.config
    for path, value in a.parameters.items():
        np.testing.assert_array_equal(value, b.parameters[path])
    drawn = [f"--output={tmp_path / 'drawn'}", "--num_samples=2", "--steps=1"]
    assert sample.main([f"--workdir={small}", *drawn]) == 0


def test_the_record_tells_what_was_done(small, run):
    record = read_compressed(small)
    assert record is not None
    before = load_run(run)
    assert record.source == str(run.resolve())
    assert record.digest == digest({k: np.asarray(v) for k, v in before.parameters.items()})
    assert [step.step for step in record.steps] == [
        "drop:keep=3,by=random",
        "drop:keep=2,by=random,seed=1",
    ]
    # One layer of width 16: an expert has two matrices with biases, and a prototype.
    expert = 2 * 16 * 16 + 2 * 16
    assert record.before.parameters - record.after.parameters == 2 * (expert + 16)
    assert record.before.bytes == 4 * record.before.parameters
    files = read_safetensors(small / "model.safetensors").values()
    assert record.after.bytes == sum(np.asarray(tensor).nbytes for tensor in files)
    assert record.after == size_of(chain.read_model(small, ema=True))
    (kept,) = record.steps[1].told["experts"]
    assert len(kept) == 2
    card = (small / "README.md").read_text()
    assert "## Compressed" in card
    assert f"{record.after.bytes:,}" in card
    assert not small.with_name("small.steps").exists()


def test_survivors_are_as_they_were(small, run):
    """Experts, prototypes and the unconditional expert, which comes last."""
    record = read_compressed(small)
    assert record is not None
    (first,), (second,) = (step.told["experts"] for step in record.steps)
    kept = [first[i][0] for (i,) in second]
    before, after = load_run(run).parameters, load_run(small).parameters
    layer = "trunk.segments.0.blocks.1.feed_forward."
    for path, value in after.items():
        expected = np.asarray(before[path])
        if path.startswith(f"{layer}experts."):
            expected = expected[:, [*kept, 4]]
        elif path == f"{layer}router.prototypes":
            expected = expected[:, kept]
        np.testing.assert_array_equal(value, expected)


def test_a_compressed_folder_is_compressed_further(small, run, tmp_path):
    record = compress(small, tmp_path / "one", [lot(1)], say=quiet)
    assert record.source == str(run.resolve())
    assert [step.settings["keep"] for step in record.steps] == [3, 2, 1]


def test_nothing_to_do_changes_no_bit(run, tmp_path):
    compress(run, tmp_path / "same", [lot(4)], say=quiet)
    a, b = load_run(run), load_run(tmp_path / "same")
    assert a.config == b.config
    assert digest({k: np.asarray(v) for k, v in a.parameters.items()}) == digest(
        {k: np.asarray(v) for k, v in b.parameters.items()}
    )


def test_an_interrupted_chain_goes_on(run, tmp_path, monkeypatch):
    steps = [lot(3), lot(2), lot(1)]
    whole = compress(run, tmp_path / "whole", steps, say=quiet)
    done, apply = [], chain.apply_step

    def counted(model, step, calibration):
        done.append(step)
        if len(done) == 3:
            raise KeyboardInterrupt
        return apply(model, step, calibration)

    monkeypatch.setattr(chain, "apply_step", counted)
    output = tmp_path / "small"
    with pytest.raises(KeyboardInterrupt):
        compress(run, output, steps, say=quiet)
    assert not output.exists()
    said: list[str] = []
    record = compress(run, output, steps, say=said.append)
    assert done == [*steps, steps[-1]]  # the third was done again
    assert said[0] == f"Goes on after step 2 of 3, kept in {output}.steps."
    assert record == whole
    for name in ("model.safetensors", "config.json", "compressed.json"):
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_another_chain_takes_nothing_of_the_one_before(run, tmp_path, monkeypatch):
    """The kept step has other settings."""
    apply = chain.apply_step

    def interrupted(model, step, calibration):
        if step.keep == 1:
            raise KeyboardInterrupt
        return apply(model, step, calibration)

    monkeypatch.setattr(chain, "apply_step", interrupted)
    output = tmp_path / "small"
    with pytest.raises(KeyboardInterrupt):
        compress(run, output, [lot(3), lot(1)], say=quiet)
    steps = [lot(3, seed=5), lot(2)]
    said: list[str] = []
    record = compress(run, output, steps, say=said.append)
    assert said[0].startswith("1/2 drop:keep=3,by=random,seed=5: ")
    assert record.steps[0].settings["seed"] == 5


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--steps", "drop:keep=2,by=random", "--workdir=nowhere"], "workdir is 'nowhere'"),
        (["--steps", "drop:keep=2,by=random", "--images=0"], "calibration.images is 0"),
        ([], "of steps and recipe neither is given"),
    ],
)
def test_bad_input_is_one_sentence(run, tmp_path, capsys, flags, told):
    output = tmp_path / "small"
    assert command.main([f"--workdir={run}", f"--output={output}", *flags]) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_dense_model_has_nothing_to_drop(tmp_path, capsys):
    dense = write_fresh_run(tmp_path / "dense", tiny(None))
    flags = [
        f"--workdir={dense}",
        f"--output={tmp_path / 'small'}",
        "--steps",
        "drop:keep=2,by=random",
    ]
    assert command.main(flags) == 2
    assert "the model is dense, with no experts" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_a_run_starts_from_a_compressed_model(small):
    config = load_run(small).config
    sources = build_sources(config.data, config.model)
    assert find_start(InitFrom(str(small)), config, sources).model == config.model


def test_calibration_is_stratified():
    inputs = list(shown(MODEL, batch_size=4).batches())
    assert [len(i.x) for i in inputs] == [4, 2] * 3
    for time in range(3):
        own = [i for i in inputs if i.time == time]
        y = np.concatenate([i.y for i in own])
        assert (y == 10).sum() == 3
        assert all((i.t == own[0].t[0]).all() for i in own)
    # Every image has been shown with and without its class.
    first, second = (np.concatenate([i.y for i in inputs if i.time == t]) for t in (0, 1))
    assert ((first == 10) | (second == 10)).all()
    assert len({float(i.t[0]) for i in inputs}) == 3


def test_calibration_is_the_same_whenever_it_is_asked_for():
    calibration = shown(MODEL, batch_size=4)
    for a, b in zip(calibration.batches(), calibration.batches(), strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    noise = np.concatenate([i.noise for i in calibration.batches()])
    assert len(np.unique(noise[:, 0, 0, 0])) == len(noise)
    assert calibration.digest == shown(MODEL, batch_size=4).digest
    for other in ({"seed": 1}, {"times": 4}, {"null_share": 0.0}):
        assert shown(MODEL, **{"batch_size": 4, **other}).digest != calibration.digest


def test_training_between_stages(run, monkeypatch, tmp_path):
    """The trainer's own, with the original as teacher; what a signal stopped goes on, nothing of it
    stays beside the result, and all but the parameters is as the step before left it."""
    output = tmp_path / "slim"
    steps = ["slim:hidden=12,by=magnitude", "train:steps=2,batch_size=8,learning_rate=0.01"]
    flags = [f"--workdir={run}", f"--output={output}", "--steps", *steps]
    configs = []

    def stopped(config: Config, workdir: Path, **_: object) -> int:
        configs.append(config)
        Path(workdir).mkdir()
        return 2

    with monkeypatch.context() as patch:
        patch.setattr(stage, "train_run", stopped)
        assert command.main(flags) == 130
    assert not output.exists()
    (config,) = configs
    assert config.train.distill == DistillConfig(str(run.resolve()), 1.0, 1.0)
    assert (config.train.steps, config.train.batch_size) == (2, 8)
    assert config.model.mixtures[0].hidden_ratio == 12 / 16
    assert command.main(flags) == 0
    record = read_compressed(output)
    assert record is not None
    slimmed, trained = record.steps
    assert trained.after.parameters == slimmed.after.parameters
    assert trained.told == {"teacher": str(run.resolve())}
    assert not output.with_name("slim.steps").exists()
    found = load_run(output)
    assert found.config.train == load_run(run).config.train
    alone = tmp_path / "alone"
    compress(run, alone, [parse_step(steps[0])], say=quiet)
    moved = [k for k, p in load_run(alone).parameters.items() if (p != found.parameters[k]).any()]
    assert "trunk.segments.0.blocks.1.feed_forward.shared.experts.w_in" in moved
