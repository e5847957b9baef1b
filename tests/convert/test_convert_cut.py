"""Experts cut out of a dense network, and the router that learns from overlaps."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dit_moe
from dit_moe.commands import convert as command
from dit_moe.config import EXPERTS, ConfigError, ExpertGroup, TopKRouterConfig
from dit_moe.config.files import to_json
from dit_moe.models.parameters import abstract_parameters
from dit_moe.runs.loading import load_run
from dit_moe.runs.writer import InMemory, write_run
from dit_moe.surgery.activity import activations
from dit_moe.surgery.cut import check, cut_run
from dit_moe.surgery.masks import choose_units, masks, part_of
from dit_moe.surgery.overlaps import overlap
from tests.tiny import DIT_MOE, PREGATED, pregated, tiny
from tests.training.test_training import batch

F = 64
"""Hidden units of the dense network, four widths of 16."""
NEW = pregated(dataclasses.replace(PREGATED, hidden_ratio=1, shared_hidden_ratio=1))
PART = "trunk.segments.0.blocks.0.feed_forward."


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> Path:
    folder, config = tmp_path_factory.mktemp("runs") / "dense", tiny(None)
    rng = np.random.default_rng(0)
    shapes = {path: p.shape for path, p in abstract_parameters(config.model).items()}
    values = {path: rng.normal(0, 0.2, shape).astype(np.float32) for path, shape in shapes.items()}
    write_run(folder, config, None, InMemory(shapes, lambda path, index: values[path][index]))
    return folder


@pytest.fixture(scope="module")
def cut(dense, tmp_path_factory) -> tuple[Path, float]:
    folder = tmp_path_factory.mktemp("runs") / "cut"
    return folder, cut_run(dense, NEW, folder, by="time", images=64, steps=80)


def test_units_are_those_of_the_masks():
    """Where the masks of P + H most active units have P in common, these are the permanent ones,
    and an expert's are the rest of its mask."""
    rng = np.random.default_rng(1)
    activity_ExF = rng.random((3, 24)) + 2 * (np.arange(24) < 5)
    best_ExM = np.argsort(-activity_ExF, axis=1)[:, :12]
    sets = [set(row.tolist()) for row in best_ExM]
    common = set.intersection(*sets)
    units = choose_units(activity_ExF, len(common), 12 - len(common))
    assert set(units.permanent.tolist()) == common
    assert [set(row.tolist()) for row in units.own] == [own - common for own in sets]
    assert masks(units, 24).sum(axis=1).tolist() == [12 - len(common)] * 3
    everything = choose_units(activity_ExF, 4, 20)
    for row in everything.own:
        assert sorted([*row, *everything.permanent]) == list(range(24))


@pytest.mark.parametrize("name", ["gelu", "swiglu"])
def test_parts_with_disjoint_units_sum_to_the_whole(name):
    """What of a network is in several parts, by hand: the union of the masks is the network."""
    kind, rng = EXPERTS[name], np.random.default_rng(2)
    w_in = rng.normal(size=(8, kind.in_matrices * 12)).astype(np.float32)
    w_out = rng.normal(size=(12, 8)).astype(np.float32)
    x = rng.normal(size=(5, 8)).astype(np.float32)

    def network(units):
        hidden = kind.activation(jnp.asarray(x @ part_of(w_in, "w_in", units, kind)))
        return np.asarray(hidden) @ part_of(w_out, "w_out", units, kind)

    parts = np.split(rng.permutation(12), [3, 7])
    np.testing.assert_allclose(sum(map(network, parts)), network(np.arange(12)), atol=1e-4)


def test_experts_are_parts_of_the_dense_network(dense, cut):
    """To the bit: every expert's units with all their weights are units of the dense network, and
    those of the masks together are all that it has, each unit permanent or not."""
    old, new = load_run(dense).parameters, load_run(cut[0]).parameters
    assert old.keys() - new.keys() == set()
    for layer in range(2):
        w_in, b_in, w_out = (
            np.asarray(old[f"{PART}experts.{n}"])[layer, 0] for n in ("w_in", "b_in", "w_out")
        )
        whole = {(*w_in[:, f], b_in[f], *w_out[f]) for f in range(F)}

        def rows(where, layer=layer):
            w_in, b_in, w_out = (
                np.asarray(new[f"{PART}{where}.{n}"])[layer] for n in ("w_in", "b_in", "w_out")
            )
            return [
                {(*w_in[e, :, f], b_in[e, f], *w_out[e, f]) for f in range(16)}
                for e in range(len(w_in))
            ]

        (permanent,), own = rows("shared.experts"), rows("experts")
        assert [len(units) for units in (permanent, *own)] == [16] * 5
        assert permanent <= whole
        for units in own:
            assert units <= whole - permanent
        assert len(set.union(*own)) > 16  # the parts of the times differ
        np.testing.assert_array_equal(
            new[f"{PART}shared.experts.b_out"], old[f"{PART}experts.b_out"]
        )
        assert not np.asarray(new[f"{PART}experts.b_out"]).any()
    beside = [p for p in new if "feed_forward" not in p and "pregate" not in p]
    for path in beside:
        np.testing.assert_array_equal(new[path], old[path], err_msg=path)


@pytest.mark.parametrize("shared", [0, 2])
def test_masks_of_all_units_are_the_dense_network(shared, dense, tmp_path):
    """Whoever is chosen, with permanent units or without."""
    moe = dataclasses.replace(PREGATED, hidden_ratio=4 - shared, shared_hidden_ratio=shared)
    cut_run(dense, pregated(moe), tmp_path / "all", images=64, steps=1)
    x, y = batch(4)
    t = jnp.linspace(0.1, 0.9, 4)
    expected, actual = (dit_moe.load(folder)(x, t, y) for folder in (dense, tmp_path / "all"))
    assert len(np.unique(actual.routing[0].expert)) > 1
    np.testing.assert_allclose(
        actual.value, expected.value, atol=1e-5 * np.abs(expected.value).max()
    )


def test_overlap_counts_units():
    rng = np.random.default_rng(3)
    size = [rng.random((2, 3, 8)).astype(np.float32) for _ in range(2)]
    mask = [rng.random((4, 8)) < 0.5 for _ in range(2)]
    counts = np.zeros((6, 4))
    for layer in range(2):
        for t, token in enumerate(size[layer].reshape(6, 8)):
            best = set(np.argsort(-token)[:4].tolist())
            for e in range(4):
                counts[t, e] += len(best & set(np.flatnonzero(mask[layer][e]).tolist()))
    np.testing.assert_array_equal(overlap([jnp.asarray(s) for s in size], mask), counts / 2)


def test_activations_are_those_of_the_network(dense):
    """Of the first block, by hand from the tokens that enter the trunk."""
    run = load_run(dense)
    x, y = batch(2)
    heard, tokens, given = activations(run.config.model, run.parameters, x, jnp.ones(2), y)
    network = dit_moe.load(dense)
    block = jax.tree.map(lambda p: p[0], network.trunk.segments[0]).blocks[0]
    seen = []
    forward = block.feed_forward.__call__
    block.feed_forward = lambda h: (seen.append(h), forward(h))[1]
    block(tokens, given)
    p = {n: np.asarray(run.parameters[f"{PART}experts.{n}"])[0, 0] for n in ("w_in", "b_in")}
    expected = np.abs(jax.nn.gelu(np.asarray(seen[0]) @ p["w_in"] + p["b_in"]))
    np.testing.assert_allclose(heard[0], expected, atol=1e-4)
    assert [h.shape for h in heard] == [(2, 16, F)] * 2


def test_the_router_learns(cut):
    """Parts of the time are well told apart by a router that sees the time."""
    assert cut[1] > 0.5  # one in four by chance


def test_what_was_cut_trains_on(cut, tmp_path):
    from dit_moe.training.loop import train

    config = dataclasses.replace(NEW, train=dataclasses.replace(NEW.train, steps=1))
    train(config, tmp_path, init_from=str(cut[0]))
    assert (tmp_path / "metrics.csv").exists()


def changed(**moe):
    model = NEW.model
    assert model.moe is not None
    return dataclasses.replace(
        NEW, model=dataclasses.replace(model, moe=dataclasses.replace(model.moe, **moe))
    )


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (tiny(None), "config.model.moe is none"),
        (tiny(DIT_MOE), "config.model.pregate is none"),
        (changed(top_k=2), "config.model.moe.top_k is 2; allowed: 1"),
        (changed(expert="silu"), "config.model.moe.expert is 'silu'; allowed: 'gelu'"),
        (changed(unlike=(ExpertGroup("gru", 1, 0.5),)), "config.model.moe.unlike is"),
        (changed(hidden_ratio=3.5), "ratios that sum to 4 at most"),
        (
            dataclasses.replace(NEW, model=dataclasses.replace(NEW.model, num_classes=9)),
            "config.model.num_classes is 9; allowed: 10, as in the run to cut",
        ),
    ],
)
def test_refusals(new, message):
    with pytest.raises(ConfigError) as error:
        check(tiny(None), new)
    assert message in str(error.value)
    with pytest.raises(ConfigError, match="the run to cut has mixtures"):
        check(NEW, NEW)


def test_weights_are_1_and_every_part_has_images(dense, tmp_path):
    with pytest.raises(ConfigError, match="weight of a token's one expert is not 1"):
        cut_run(dense, changed(router=TopKRouterConfig()), tmp_path / "a", images=64, steps=1)
    with pytest.raises(ConfigError, match=r"images is 1, of which none is in part \d+ of 40"):
        cut_run(dense, changed(num_experts=40), tmp_path / "a", images=1, steps=1)
    for field in ("images", "steps"):
        with pytest.raises(ConfigError, match=f"{field} is 0; allowed: 1 or more"):
            cut_run(dense, NEW, tmp_path / "a", **{field: 0})
    assert not (tmp_path / "a").exists()


def test_command(dense, tmp_path, capsys):
    config = tmp_path / "config.py"
    config.write_text(
        "from pathlib import Path\nfrom dit_moe.config.files import load_json\n"
        f"def get_config():\n    return load_json(Path({str(tmp_path / 'new.json')!r}))\n"
    )
    (tmp_path / "new.json").write_text(to_json(NEW))
    flags = [f"--cut={dense}", f"--config={config}", f"--output={tmp_path / 'new'}"]
    assert (
        command.main([*flags, "--images=32", "--steps=1", "--config.model.moe.num_experts=2"]) == 0
    )
    assert "of the tokens to the expert with most of their units" in capsys.readouterr().out
    assert dit_moe.load(tmp_path / "new").config.mixtures[0].num_experts == 2
    assert command.main(flags) == 2  # the output is there
    with pytest.raises(SystemExit):
        command.main([f"--upcycle={dense}", f"--config={config}", "--output=x", "--by=time"])
    assert "--by is given without --cut" in capsys.readouterr().err
