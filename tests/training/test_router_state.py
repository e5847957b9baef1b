"""What a router keeps beside the gradient (DiffMoE's thresholds) through steps and skips."""

import csv
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.config.files import load_file
from dit_moe.diffusion.integrate import build_objective
from dit_moe.models.parameters import functional
from dit_moe.nn.embeddings import drop_labels
from dit_moe.runs.state import init_state
from dit_moe.training.loop import train
from dit_moe.training.step import SKIPPED_FOR_DATA, build_step
from tests.tiny import DIFFMOE, tiny
from tests.training.test_training import batch, one_device

# Experts with weights of a token where the load is as the balance loss would have it.
CHEAP = {"adamoe": 2.0, "moe-plus-plus": 1.2}
PATH = "trunk.segments.0.blocks.1.feed_forward.router.threshold"


def test_thresholds_follow_the_predictions_and_nothing_else():
    """Their gradient is 0, but weight decay or an average of them would move them."""
    parts = 2
    config = tiny(DIFFMOE, batch_size=8, accumulation=parts, weight_decay=0.5)
    x, y = batch(8)
    state = init_state(config.model, config.train, one_device(), config.seed)
    before = {**state.parameters, PATH: jnp.full_like(state.parameters[PATH], 0.5)}
    state = state.replace(parameters=before)  # pyright: ignore[reportAttributeAccessIssue]
    step = jax.jit(build_step(config.model, config.objective, config.train, config.seed))
    after, metrics = step(state, x, y)

    # The same draws, part by part.
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    key_N = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(8))
    label_key_N, key_N = jax.vmap(jax.random.split, out_axes=1)(key_N)
    y_N = drop_labels(label_key_N, y, config.model.label_dropout, config.model.null_label)
    network = functools.partial(functional(config.model)(before), train=True)
    thresholds, capacities = [], []
    for p in range(parts):
        part = (key_N[p::parts], x[p::parts], y_N[p::parts])
        _, (_, prediction) = build_objective(config.objective).loss(network, *part)
        thresholds.append(prediction.routing[0].next_state["threshold"])
        capacities.append(prediction.routing[0].metrics["predicted_capacity"])
    np.testing.assert_allclose(after.parameters[PATH], np.mean(thresholds, axis=0), rtol=1e-5)
    np.testing.assert_array_equal(after.ema[PATH], after.parameters[PATH])
    np.testing.assert_allclose(metrics["moe/capacity"][0], [1.0])
    np.testing.assert_allclose(
        metrics["moe/predicted_capacity"][0], np.mean(capacities, axis=0), rtol=1e-5
    )

    skipped, metrics = step(after, jnp.full_like(x, jnp.nan), y)
    assert metrics["skipped"] == SKIPPED_FOR_DATA
    np.testing.assert_array_equal(skipped.parameters[PATH], after.parameters[PATH])


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture",
    [
        *("ec-dit", "promoe-ec", "diffmoe", "ds-moe", "tc-sigmoid", "tc-bias", "tc-noisy", "x-moe"),
        *("tc-capacity", "soft-moe", "expert-race"),
        *CHEAP,
        *("unlike", "pyramid", "pyramid-mix", "pre-gated"),
    ],
)
def test_training_on_digits(architecture, tmp_path):
    """The loss falls, every expert works, and sampling would use as many experts as training."""
    overrides = {
        "model.width": 32,
        "model.depth": 2,
        "train.steps": 150,
        "train.batch_size": 64,
        "train.warmup_steps": 15,
        "train.learning_rate": 3e-3,
        "train.log_every": 25,
        "train.checkpoint_every": 150,
        "train.sample_every": 0,
    }
    if architecture.startswith("pyramid"):
        del overrides["model.depth"]  # which is that of its segments
    texts = [f"--config.{name}={value}" for name, value in overrides.items()]
    train(load_file(f"configs/digits.py:{architecture}", texts), tmp_path)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert float(rows[-1]["mse"]) < 0.6 * float(rows[0]["mse"])
    last = {name: float(value) for name, value in rows[-1].items() if name.startswith("moe/")}
    assert min(last[f"moe/load/layer00/expert{e:02d}"] for e in range(8)) > 0
    if architecture in CHEAP:
        assert last["moe/capacity/layer00"] == pytest.approx(CHEAP[architecture], abs=0.3)
    else:
        experts = 2.0 if architecture in ("ds-moe", "tc-noisy", "expert-race") else 1.0
        dropped = last.get("moe/dropped/layer00", 0.0)
        assert (dropped > 0) == (architecture == "tc-capacity")
        assert last["moe/capacity/layer00"] == pytest.approx(experts * (1 - dropped))
    if architecture in ("diffmoe", "expert-race"):
        assert float(rows[0]["moe/predicted_capacity/layer00"]) > 2  # thresholds begin at 0
        assert last["moe/predicted_capacity/layer00"] == pytest.approx(experts, rel=0.2)
