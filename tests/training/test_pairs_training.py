"""Training on pairs of images: what learns, what stays, and that it goes on to the bit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dit_moe.config import ConfigError, DataConfig, PairsConfig, RectifiedFlowConfig
from dit_moe.diffusion.rectified_flow import RectifiedFlow
from dit_moe.models.parameters import abstract_parameters
from dit_moe.models.prediction import Prediction
from dit_moe.nn.embeddings import drop_labels_of_pairs
from dit_moe.runs.loading import load_kept, load_run
from dit_moe.runs.state import abstract_state
from dit_moe.training.given_pairs import beside_given, learning_rows
from dit_moe.training.loop import train
from dit_moe.training.step import build_step, image_keys, in_parts
from tests.tiny import DIT_MOE, tiny
from tests.training.test_training import one_device

LEARN = ("*.joint.*", "second_condition")


def of_pairs(**settings):
    """Of a small mixture, with additions that all learn."""
    given = {"steps": 3, "weight_decay": 0.1, "learn": LEARN, "batch_size": 32, "accumulation": 2}
    config = tiny(DIT_MOE, **{**given, **settings})
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, pairs=PairsConfig(rank=4)),
        data=DataConfig(pair="edges"),
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("base") / "run"
    train(tiny(DIT_MOE, steps=1, batch_size=8), workdir)
    return workdir


@pytest.fixture(scope="module")
def run(base):
    workdir = base.with_name("pairs")
    train(of_pairs(), workdir, init_from=str(base))
    return workdir


@pytest.mark.parametrize("ema", [True, False])
def test_the_base_keeps_its_bits(base, run, ema):
    """And all that is for pairs moves, but for nothing else."""
    before, after = load_run(base).parameters, load_run(run, ema, pairs=True).parameters
    assert after.keys() == abstract_parameters(of_pairs().model).keys()
    for path, p in before.items():
        np.testing.assert_array_equal(after[path], p, err_msg=path)
    new = after.keys() - before.keys()
    assert {path for path in new if ".joint." in path} == new - {"second_condition"}
    # What lies before the zeros of `b` and of the projection needs a step more to move.
    assert all(np.abs(after[path]).max() > 0 for path in new)


def test_state_for_what_learns_alone():
    config = of_pairs()
    state = abstract_state(config.model, config.train, one_device())
    learning = {p for p in state.parameters if ".joint." in p} | {"second_condition"}
    moments = optax.tree.get(state.optimizer, "ScaleByAdamState")
    assert state.ema.keys() == moments.mu.keys() == moments.nu.keys() == learning
    assert learning < state.parameters.keys()


def test_it_resumes_to_the_bit(base, run):
    workdir = base.with_name("in-two-goes")
    for steps in (2, 3):
        train(of_pairs(steps=steps), workdir, init_from=str(base))
    for ema in (True, False):
        actual, expected = (load_kept(w, of_pairs(), ema=ema)[1] for w in (workdir, run))
        jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_who_draws_single_images_is_told(base, run, tmp_path):
    with pytest.raises(ConfigError, match=r"pairs holds a model of pairs \(model\.pairs\); allo"):
        load_run(run)
    with pytest.raises(
        ConfigError, match=r"whose network differs from config\.model in model\.pairs"
    ):
        train(tiny(DIT_MOE), tmp_path / "back", init_from=str(run))
    assert not (tmp_path / "back" / "config.json").exists()


def test_a_pattern_of_no_parameter(tmp_path):
    with pytest.raises(ConfigError, match=r"learn has 'joined', which matches no parameter; near"):
        train(of_pairs(learn=("joined",)), tmp_path / "run")


def test_parts_keep_pairs_together():
    (found,) = in_parts(3, 2, np.arange(24).reshape(12, 2))
    np.testing.assert_array_equal(found[:, :, 0] // 2, [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]])
    (alone,) = in_parts(3, 1, np.arange(12))
    np.testing.assert_array_equal(alone, np.arange(12).reshape(4, 3).T)


def test_labels_are_dropped_of_both_or_of_one():
    key_N, y_N = jax.random.split(jax.random.key(0), 8000), np.zeros(8000, np.int32)
    dropped = np.asarray(drop_labels_of_pairs(key_N, y_N, 0.1, 10)).reshape(-1, 2) == 10
    first, second = dropped.T
    for share in (first & second, first & ~second, second & ~first):
        assert share.mean() == pytest.approx(0.1, abs=0.015)
    assert np.all(drop_labels_of_pairs(key_N, y_N, 1.0, 10) == 10)
    assert not np.any(drop_labels_of_pairs(key_N, y_N, 0.0, 10) == 10)


def test_times_of_a_pair_are_independent():
    """An image's time follows from its own key (`Objective.loss`), and so says nothing of the
    other's."""
    t_N = RectifiedFlow(RectifiedFlowConfig()).draw_times(image_keys(jax.random.key(0), 4000))
    first, second = np.asarray(t_N).reshape(-1, 2).T
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06


def test_which_images_are_given():
    """In turn the first and the second one, of so many pairs."""
    np.testing.assert_array_equal(learning_rows(12, 0.5), np.delete(np.arange(12), [2, 7, 10]))
    np.testing.assert_array_equal(learning_rows(6, 1.0), [1, 2, 5])
    np.testing.assert_array_equal(learning_rows(6, 0.0), np.arange(6))
    for share in (0.2, 0.55, 0.9):
        given = np.setdiff1d(np.arange(400), learning_rows(400, share))
        assert len(given) == pytest.approx(200 * share, abs=1)
        assert len(np.unique(given // 2)) == len(given)
        assert abs((given % 2).mean() - 0.5) < 0.02


def test_what_is_given_has_no_noise_and_no_loss():
    """The network sees it as it is, at time 0; the loss is the mean over the others, each with the
    time and noise of its key."""
    flow, learning = RectifiedFlow(RectifiedFlowConfig()), learning_rows(8, 0.5)
    key_N, asked = image_keys(jax.random.key(0), 8), []
    x = jax.random.normal(jax.random.key(1), (8, 4, 4, 1))
    y_N = np.arange(8)

    def network(z, t_N, y_N):
        asked.append((z, t_N, y_N))
        return Prediction(value=z * t_N[:, None, None, None], routing=(), losses={})

    beside = beside_given(network, x, jnp.asarray(y_N), learning)
    loss, _ = flow.loss(beside, key_N[learning], x[learning], y_N[learning])
    flow.loss(network, key_N, x, y_N)
    (z, t_N, seen_N), (all_z, all_t, _) = asked
    given = np.setdiff1d(np.arange(8), learning)
    assert len(given) == 2
    np.testing.assert_array_equal(z[given], x[given])
    assert not np.any(t_N[given])
    np.testing.assert_array_equal(seen_N, y_N)
    np.testing.assert_array_equal(z[learning], all_z[learning])
    np.testing.assert_array_equal(t_N[learning], all_t[learning])
    noise = (all_z - (1 - all_t)[:, None, None, None] * x) / all_t[:, None, None, None]
    error = np.asarray((z * t_N[:, None, None, None] - (noise - x)) ** 2)[learning]
    assert loss == pytest.approx(error.mean(), rel=1e-4)


def test_a_step_gives_images_where_the_config_says_so():
    config, programs = of_pairs(), []
    x, y_N = jnp.zeros((32, 8, 8, 1)), jnp.zeros(32, jnp.int32)
    state = abstract_state(config.model, config.train, one_device())
    for share in (0.0, 0.5):
        pairs = dataclasses.replace(config.model.pairs, given=share)
        model = dataclasses.replace(config.model, pairs=pairs)
        step = jax.jit(build_step(model, config.objective, config.train, 0))
        programs.append(step.lower(state, x, y_N).as_text())
    # Half of the 8 pairs of a part have one image that learns.
    assert "tensor<12x8x8x1xf32>" in programs[1]
    assert "tensor<12x8x8x1xf32>" not in programs[0]
