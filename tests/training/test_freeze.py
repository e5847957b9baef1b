"""Parameters that `train.freeze` names stay what they are, bit by bit, and cost no state."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from dit_moe.config import ConfigError
from dit_moe.models.frozen import split_frozen
from dit_moe.plan.estimate import estimate
from dit_moe.plan.flops import image_flops
from dit_moe.runs.state import init_state
from dit_moe.training.loop import train
from dit_moe.training.step import build_step
from tests.tiny import DIFFMOE, PROMOE, tiny
from tests.training.test_training import batch, one_device

FREEZE = ("trunk.*.router.*", "label.table", "*.attention.*")


def after_one_step(config):
    start = init_state(config.model, config.train, one_device(), config.seed)
    # The zeros of a fresh network would give most parameters no gradient.
    random = np.random.default_rng(0)
    away = {p: v + random.normal(0, 0.1, v.shape).astype("f") for p, v in start.parameters.items()}
    start = dataclasses.replace(start, parameters=away, ema=away)
    step = jax.jit(build_step(config.model, config.objective, config.train, config.seed))
    return start, step(start, *batch(config.train.batch_size))


@pytest.mark.parametrize(("moe", "parts"), [(PROMOE, 1), (DIFFMOE, 2)])
def test_frozen_parameters_do_not_move(moe, parts):
    """Neither by the gradient nor by weight decay nor by a router's own rule; others as ever."""
    settings = {"gradient_clip": None, "weight_decay": 0.5, "accumulation": parts, "batch_size": 8}
    config = tiny(moe, **settings, post_hoc_ema=(0.1,), freeze=FREEZE)
    start, (state, metrics) = after_one_step(config)
    assert metrics["skipped"] == 0
    learning, frozen = split_frozen(start.parameters, FREEZE)
    assert any(".router." in path for path in frozen)
    for path, before in frozen.items():
        for tree in (state.parameters, state.ema):
            np.testing.assert_array_equal(tree[path], before, err_msg=path)
        np.testing.assert_array_equal(state.tracks["0.1"][path], before, err_msg=path)
    moments = optax.tree.get(state.optimizer, "ScaleByAdamState")
    assert moments.mu.keys() == moments.nu.keys() == learning.keys()

    free = tiny(moe, **settings, post_hoc_ema=(0.1,))
    _, (expected, whole) = after_one_step(free)
    assert metrics["gradient_norm"] < whole["gradient_norm"]
    for path, before in learning.items():
        assert not np.array_equal(state.parameters[path], before)
        for name in ("parameters", "ema"):
            actual, wanted = getattr(state, name)[path], getattr(expected, name)[path]
            np.testing.assert_allclose(actual, wanted, atol=1e-6, err_msg=path)


def test_a_pattern_of_no_parameter(tmp_path):
    config = tiny(None, freeze=("trunk.*", "timestep.dense_inn.kernel"))
    with pytest.raises(ConfigError) as error:
        train(config, tmp_path / "run")
    assert str(error.value).startswith(
        "config.train.freeze has 'timestep.dense_inn.kernel', which matches no parameter; near it "
        "are timestep.dense_in.kernel, "
    )
    assert not (tmp_path / "run" / "config.json").exists()


def test_all_parameters():
    with pytest.raises(
        ConfigError, match=r"'trunk\.\*, l\*', which matches every parameter; allowed"
    ):
        split_frozen({"trunk.a": 1, "label.table": 2}, ("trunk.*", "l*"))


def test_the_plan_counts_what_learns():
    free, frozen = (estimate(tiny(None, freeze=f), {}) for f in ((), ("trunk.*",)))
    assert frozen.parts["parameters"] == free.parts["parameters"]
    for part in ("optimizer", "gradients"):
        assert 0 < frozen.parts[part] < free.parts[part] / 2
    assert frozen.parts["working set"] < free.parts["working set"]
    # All gradients flow, to the embeddings of time and class, but to no matrix of the trunk.
    forward = image_flops(tiny(None).model).total
    assert 2 * forward < frozen.flops_per_image < free.flops_per_image == 3 * forward
