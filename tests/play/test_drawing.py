"""What the page draws, without the page."""

import contextlib
import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.analysis.decisions import decisions, most_experts
from dit_moe.config import ConfigError, SampleConfig
from dit_moe.data.classes import Classes, write_classes
from dit_moe.models.parameters import functional
from dit_moe.play import brush
from dit_moe.play.drawer import Drawer
from dit_moe.play.overlay import SHOWN, colours, expert_names, layer_titles, overlay
from dit_moe.play.player import Player
from dit_moe.play.starts import arc, own_starts, walk
from dit_moe.play.wishes import Wishes
from dit_moe.sampling.run_sampler import RunSampler
from dit_moe.storage.images import to_uint8
from dit_moe.training.loop import train
from tests.analysis.fresh_run import write_fresh_run
from tests.tiny import MOE_PLUS_PLUS, PROMOE, tiny

NAMES = ("nought", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WISHES = Wishes(("seven", "two"), 3, 5, "euler", 3, "cfg", 2.0, 0.2, 0.9)
SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with names of classes, whose network is not zero any more."""
    workdir = tmp_path_factory.mktemp("run")
    config = tiny(steps=3, learning_rate=0.05, log_every=3)
    train(dataclasses.replace(config, sample=SampleConfig(steps=3)), workdir)
    write_classes(workdir, Classes(NAMES, (1,) * 9 + (0,)))
    return workdir


@pytest.fixture(scope="module")
def drawer(run) -> Drawer:
    return Drawer(run, ema=False, batch_size=4)


def wished(drawer: Drawer, **changes):
    return dataclasses.replace(WISHES, **changes).request(drawer, tuple(drawer.labels))


def test_pictures_are_those_of_the_command(run, drawer):
    request = wished(drawer, number=5)
    done = []
    drawn = drawer.draw(request, own_starts(request, SHAPE), tell=done.append)
    sampler = RunSampler(
        run,
        ema=False,
        batch_size=8,
        num_samples=5,
        classes=["seven", "two"],
        seed=5,
        integration={"solver": "euler", "steps": 3},
        guidance={"scale": 2.0, "interval": (0.2, 0.9)},
    )
    expected = np.concatenate(list(sampler.batches()))
    assert np.abs(drawn.pictures.astype(int) - expected).max() <= 1
    assert done == [0, 4]
    assert drawn.first is not None
    assert drawn.first.shape == (3, 1, 5, 16)
    # ProMoE's unconditional expert, number 4, is for the null label alone.
    assert set(np.unique(drawn.first)) <= {0, 1, 2, 3}


def test_a_program_is_compiled_once_for_its_settings(drawer):
    for changes in ({}, {"seed": 6, "classes": ("one",)}):
        request = wished(drawer, **changes)
        starts = own_starts(request, SHAPE)
        with jax.no_tracing() if changes else contextlib.nullcontext():
            drawer.draw(request, starts)


def test_the_experts_are_those_of_these_pictures(drawer):
    """Of a solver that asks twice a step, guided or not: the first half of the calls' batch."""
    request = wished(drawer, solver="heun", steps=2, low=0.0, high=0.4)
    starts = own_starts(request, SHAPE)
    drawn = drawer.draw(request, starts)
    assert drawn.first is not None
    assert drawn.first.shape == (4, 1, 3, 16)
    model = functional(drawer.config.model)(drawer._parameters)
    prediction = model(starts.noise, jnp.full(3, drawer.config.objective.time_scale), starts.label)
    seen = decisions(prediction.routing, most_experts(drawer.config.model), 16)
    np.testing.assert_array_equal(drawn.first[0], seen.first)


def test_a_walk_begins_and_ends_at_the_pictures_of_its_ends(drawer):
    request = wished(drawer, number=4)
    for table in (None, drawer.label_table):
        way = walk(request, SHAPE, seed=9, label=drawer.labels["four"], table_YxD=table)
        drawn = drawer.draw(request, way).pictures.astype(int)
        for place, changes in ((0, {}), (3, {"seed": 9, "classes": ("four",)})):
            end = wished(drawer, number=1, **changes)
            alone = drawer.draw(end, own_starts(end, SHAPE)).pictures[0]
            assert np.abs(drawn[place] - alone).max() <= 1
        assert all((drawn[i] != drawn[i + 1]).any() for i in range(3))
    np.testing.assert_array_equal(walk(request, SHAPE, 9, 4).label, [7, 7, 4, 4])


def test_an_arc_keeps_its_length():
    a, b = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    points = arc(a, b, jnp.linspace(0, 1, 5))
    lengths = jnp.linalg.norm(points.reshape(5, -1), axis=1)
    np.testing.assert_allclose(points[0], a, atol=1e-5)
    np.testing.assert_allclose(points[4], b, atol=1e-5)
    assert lengths.min() > 0.95 * min(lengths[0], lengths[4])
    assert jnp.linalg.norm((a + b) / 2) < 0.9 * lengths[2]
    np.testing.assert_allclose(arc(a, a, jnp.linspace(0, 1, 3)), jnp.stack([a] * 3), atol=1e-5)


def painted(picture: np.ndarray, new: np.ndarray) -> dict:
    """What the editor returns of a picture [H, W, C] whose pixels `new` [H, W] are brushed over."""
    large = brush.canvas(picture)
    factor = len(large) // len(new)
    alpha = 255 * new.repeat(factor, axis=0).repeat(factor, axis=1).astype(np.uint8)
    background = np.dstack([large, np.full_like(alpha, 255)])
    return {"background": background, "layers": [np.dstack([background[..., :3], alpha])]}


def test_the_brush(drawer):
    picture = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    new = np.zeros((8, 8), bool)
    new[2:5, 4:] = True
    known = brush.known(painted(picture, new), SHAPE)
    np.testing.assert_array_equal(known.kept[..., 0], ~new)
    request = wished(drawer)
    drawn = drawer.draw(request, own_starts(request, SHAPE), known).pictures
    np.testing.assert_array_equal(drawn[:, ~new], np.stack([picture[~new]] * 3))
    assert (drawn[:, new] != picture[new]).any()
    assert (drawn[0] != drawn[1]).any()


def test_the_brush_on_a_rectangle():
    picture = np.random.default_rng(0).integers(0, 256, (8, 12, 3)).astype(np.uint8)
    new = np.zeros((8, 12), bool)
    new[2:5, 7:] = True
    known = brush.known(painted(picture, new), picture.shape)
    np.testing.assert_array_equal(known.kept[..., 0], ~new)
    np.testing.assert_array_equal(to_uint8(np.asarray(known.picture)), picture)


@pytest.mark.parametrize(
    ("new", "told"),
    [
        (np.zeros((8, 8), bool), "the brush covers no pixel of the picture; allowed: a part"),
        (np.ones((8, 8), bool), "the brush covers all of the picture"),
        (None, "the picture to paint on is empty; allowed: draw"),
    ],
)
def test_what_cannot_be_painted(new, told):
    edited = None if new is None else painted(np.full(SHAPE, 9, np.uint8), new)
    with pytest.raises(ConfigError, match=told):
        brush.known(edited, SHAPE)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"number": 65}, "number of pictures is 65; allowed: 1 to 64 on the page"),
        ({"seed": None}, "seed is empty; allowed: a number"),
        ({"seed": -1}, "seed is -1; allowed: 0 to"),
        ({"scale": -1.0}, "scale is -1.0; allowed: 0 to 1000"),
        ({"low": 0.9, "high": 0.1}, "interval is 0.9,0.1; allowed: two flow times"),
        ({"steps": 0}, "steps is 0; allowed: 1 to"),
    ],
)
def test_wishes_that_cannot_be_met(drawer, changes, told):
    with pytest.raises(ConfigError, match=told):
        wished(drawer, **changes)


def test_a_walk_of_one_picture(drawer):
    with pytest.raises(ConfigError, match="number of pictures is 1; allowed: 2 or more"):
        walk(wished(drawer, number=1), SHAPE, 1, 1)


def test_classes_are_those_that_both_runs_have(drawer, run, tmp_path):
    assert tuple(drawer.labels) == NAMES[:9]
    shutil.copytree(run, tmp_path / "other")
    write_classes(tmp_path / "other", Classes((*NAMES[:7], "x", "y", "nine"), (1,) * 10))
    other = Drawer(tmp_path / "other", ema=False, batch_size=4)
    assert Player([drawer, other]).classes == NAMES[:7]
    write_classes(tmp_path / "other", Classes(tuple("abcdefghij"), (1,) * 10))
    other = Drawer(tmp_path / "other", ema=False, batch_size=4)
    with pytest.raises(ConfigError, match="compare is 'other', which has no class of"):
        Player([drawer, other])


def test_samples_that_are_no_pictures(tmp_path):
    config = tiny(None)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, channels=5))
    write_fresh_run(tmp_path / "run", config)
    with pytest.raises(ConfigError, match="samples of 5 channels are no pictures; allowed"):
        Drawer(tmp_path / "run", ema=False, batch_size=4)


def test_a_dense_model_has_no_experts(tmp_path):
    drawer = Drawer(write_fresh_run(tmp_path / "run", tiny(None)), ema=False, batch_size=4)
    request = wished(drawer, classes=("7",))
    assert drawer.draw(request, own_starts(request, SHAPE)).first is None


def test_the_overlay():
    model = tiny(PROMOE).model
    pictures = np.zeros((SHOWN + 1, 8, 8, 1), np.uint8)
    first = np.zeros((2, 1, SHOWN + 1, 16), np.int16)
    first[1, 0, 0, 0] = 3  # the patch in the upper left corner of the first picture
    first[1, 0, 4] = 5  # beyond the unconditional expert, 4: none
    shown = overlay(pictures, first, 1, 0, model)
    regions = {name: region for region, name in shown.regions}
    assert set(regions) == {"expert 0", "expert 3", "no expert"}
    assert all(region.shape == shown.picture.shape[:2] for region in regions.values())
    rows, columns = np.nonzero(regions["expert 3"])
    assert (rows.max(), columns.max(), len(rows)) == (31, 31, 32 * 32)
    rows, columns = np.nonzero(regions["no expert"])
    assert (rows.min(), columns.max(), len(rows)) == (136, 127, 128 * 128)
    # The gaps belong to nobody.
    assert sum(region.sum() for region in regions.values()) == SHOWN * 128 * 128


def test_names_and_colours_of_experts():
    assert expert_names(PROMOE)[3:] == ["expert 3", "unconditional"]
    assert expert_names(MOE_PLUS_PLUS)[4:] == ["zero 0", "copy 1", "constant 2", "constant 3"]
    assert layer_titles(tiny(PROMOE).model) == ["block 1"]
    found = colours(tiny(MOE_PLUS_PLUS).model)
    assert len(set(found.values())) == len(found) == 9
