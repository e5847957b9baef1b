"""FLOPs of a step in which a part learns, against the products that are left in its trace."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.interpreters import partial_eval

from dit_moe.config import (
    ExpertGroup,
    LowRankConfig,
    PairsConfig,
    PregateConfig,
    SegmentConfig,
    TrainConfig,
)
from dit_moe.config.small_models import small_moe
from dit_moe.models.frozen import split_learning
from dit_moe.models.low_rank import functional_merged, shapes_and_axes
from dit_moe.plan.flops import image_flops
from dit_moe.plan.training_flops import training_flops
from tests.test_plan import SMALL, inputs, traced_flops

DENSE = dataclasses.replace(SMALL, depth=2, remat="none")
MIXED = dataclasses.replace(DENSE, moe=small_moe("dit-moe"))
TWO = dataclasses.replace(
    DENSE, depth=4, segments=(SegmentConfig(2), SegmentConfig(2, small_moe("dit-moe")))
)
PAIRS = dataclasses.replace(MIXED, pairs=PairsConfig(rank=4))
BEFORE = dataclasses.replace(TWO, pregate=PregateConfig(heads=2))
BATCH = 2


def traced(model, train):
    """FLOPs of an image, of the products that a gradient by what learns depends on."""
    shapes, _ = shapes_and_axes(model, train.lora)
    learning, frozen = split_learning(shapes, train)

    def loss(learning, frozen, x, t, y):
        network = functional_merged(model, train.lora)({**learning, **frozen})
        return jnp.sum(network(x, t, y).value ** 2)

    _, *rest = inputs(model, BATCH)
    jaxpr = jax.make_jaxpr(jax.value_and_grad(loss))(learning, frozen, *rest).jaxpr
    left, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return traced_flops(left) / BATCH


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (DENSE, {"freeze": ("*.attention.*",)}),
        (DENSE, {"freeze": ("trunk.*", "timestep.*", "label.*", "patch_in.*")}),
        (MIXED, {"freeze": ("trunk.*", "patch_*", "timestep.*", "modulation.*")}),
        (MIXED, {"freeze": ("label.*", "timestep.*", "*.experts.*", "*.modulation.*")}),
        (TWO, {"freeze": ("label.*", "timestep.*", "patch_in.*", "trunk.segments.0.*")}),
        (PAIRS, {"learn": ("*.joint.*", "second_condition")}),
        (PAIRS, {"freeze": ("*.joint.*", "*.attention.out.*")}),
        (BEFORE, {"freeze": ("trunk.pregate.*",)}),
        (BEFORE, {"freeze": ("*.attention.*", "*.modulation.*")}),
        (MIXED, {"lora": LowRankConfig(rank=4)}),
        (MIXED, {"lora": LowRankConfig(patterns=("*.experts.*",), whole=("label.table",))}),
    ],
)
def test_products_of_a_step(model, settings, monkeypatch):
    # Traced as for accelerators: experts by ragged products.
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    train = TrainConfig(batch_size=BATCH, **settings)
    counted = training_flops(model, train)
    assert counted == pytest.approx(traced(model, train), rel=1e-3)
    assert counted < image_flops(model).training


@pytest.mark.parametrize(("kind", "part"), [("gru", "recurrent"), ("gelu", "experts")])
def test_groups_of_unlike_experts_that_are_frozen(kind, part):
    """What their matrices have no gradient of is not counted, by the part that they are in."""
    assert MIXED.moe is not None
    group = ExpertGroup(kind, 2, 0.5)
    model = dataclasses.replace(MIXED, moe=dataclasses.replace(MIXED.moe, unlike=(group,)))
    counted = training_flops(model, TrainConfig(freeze=("*.unlike.*",)))
    flops = dataclasses.asdict(image_flops(model))
    shapes, _ = shapes_and_axes(model, None)
    sizes = {path: shape.size for path, shape in shapes.items() if "w_" in path.split(".")[-1]}
    own = {"recurrent": ".unlike.", "experts": ".feed_forward."}[part]
    others = {p: n for p, n in sizes.items() if own in p and ".shared." not in p}
    frozen = sum(n for p, n in others.items() if ".unlike." in p) / sum(others.values())
    expected = image_flops(model).training - flops[part] * frozen
    assert counted == pytest.approx(expected, rel=1e-6)


def test_nothing_that_computes_is_frozen():
    for model in (DENSE, MIXED, TWO, PAIRS, BEFORE):
        whole = image_flops(model).training
        assert training_flops(model, TrainConfig()) == whole
        assert training_flops(model, TrainConfig(freeze=("label.*",))) == pytest.approx(whole)
