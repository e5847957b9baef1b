"""Experts away: who goes, what becomes of the router, and when nothing is lost."""

import dataclasses
import itertools

import jax
import numpy as np
import pydantic
import pytest

from dit_moe.config import (
    ConfigError,
    ExpertChoiceRouterConfig,
    MixedTopKRouterConfig,
    MoEConfig,
    SigmoidTopKRouterConfig,
    TopKRouterConfig,
)
from dit_moe.convert.constructors import constructor_arguments
from dit_moe.models.parameters import functional
from dit_moe.surgery.compress.clusters import clusters, clusters_of_all
from dit_moe.surgery.compress.drop import DropSettings, best_of_all, drop
from dit_moe.surgery.compress.experts import kept_alone, total_left, with_fewer
from dit_moe.surgery.compress.methods import chosen_steps
from dit_moe.surgery.compress.slim import SlimSettings
from dit_moe.surgery.compress.sparsify import SparsifySettings
from dit_moe.surgery.compress.statistics import layer_sums
from dit_moe.surgery.compress.steps import Model, apply_step
from dit_moe.surgery.compress.stun import StunSettings, count_choices, stun
from dit_moe.surgery.compress.worth import count_use, worth_of
from dit_moe.surgery.permutation import check_order_free
from dit_moe.training.session import build_parts
from tests.surgery.compressing import answer, answers, changed, model_of, shown
from tests.tiny import DIT_MOE, MOE_PLUS_PLUS, PROMOE, UNLIKE, tiny

# Its choice has a bias: of the third expert, so low that no token takes it.
BIASED = dataclasses.replace(DIT_MOE, router=TopKRouterConfig(bias="sign"))
RENORMALISED = dataclasses.replace(DIT_MOE, router=SigmoidTopKRouterConfig())


def without_third(moe: MoEConfig) -> Model:
    def low(bias_LxE: np.ndarray) -> None:
        bias_LxE[:, 2] = -50.0

    return changed(model_of(moe), "router.bias", low)


def twins(moe: MoEConfig) -> Model:
    """The last routed expert is the second once more, its column too."""

    def clone(axis: int):
        def change(value: np.ndarray) -> None:
            by_expert = np.moveaxis(value, axis, 0)
            by_expert[3] = by_expert[1]

        return change

    model = model_of(moe)
    for name in ("w_in", "w_out", "b_in", "b_out"):
        model = changed(model, f"experts.{name}", clone(1))
    model = changed(model, "router.kernel", clone(2))
    return changed(model, "router.prototypes", clone(1))


def mixtures(model: Model) -> list[MoEConfig]:
    return list(model.config.model.mixtures)


@pytest.mark.parametrize(
    "text",
    [
        "drop:keep=4",
        "drop:total=8,by=output,router=mask",
        "stun:total=8",
        "stun:total=8,router=remap,choices=1,means_up_to=9",
        "sparsify:share=0",
        "slim:hidden=16",
        "slim:hidden=99,by=magnitude",
    ],
)
def test_nothing_to_do_changes_nothing(text):
    model = model_of(DIT_MOE)
    (step,) = chosen_steps([text])
    calibration = shown(model) if step.needs_calibration else None
    assert apply_step(model, step, calibration).model is model


def test_use_is_what_tokens_choose():
    """Against the record of the network itself, at every time; without a class none is counted."""
    model = model_of(PROMOE)
    calibration = shown(model)
    (layer,) = layer_sums(model, calibration, "use", count_use, by_time=True)
    build = functional(model.config.model)
    look = jax.jit(lambda p, x, t, y: build(p)(x, t, y).routing)
    for inputs in calibration.batches():
        (routing,) = look(dict(model.parameters), inputs.x, inputs.t, inputs.y)
        used = np.asarray(routing.expert)[np.asarray(routing.weight) != 0]
        counted = np.bincount(used, minlength=5)
        np.testing.assert_array_equal(layer["use"][inputs.time], counted)
        assert counted[4] == 3 * 16  # half of 6 images of 16 tokens go to the unconditional expert
    (worth_E,) = worth_of(model, "use", calibration, 0)
    np.testing.assert_array_equal(worth_E, layer["use"].sum(axis=0)[:4])


def test_sums_go_on_where_they_were_stopped(tmp_path, monkeypatch):
    model = model_of(DIT_MOE)
    whole = layer_sums(model, shown(model), "use", count_use)
    calibration, asked = shown(model, tmp_path), []
    batches = calibration.batches

    def counted(time: int):
        asked.append(time)
        if asked == [0, 1]:
            raise KeyboardInterrupt
        return batches(time)

    monkeypatch.setattr(calibration, "batches", counted)
    with pytest.raises(KeyboardInterrupt):
        layer_sums(model, calibration, "use", count_use)
    for _ in range(2):  # the second time, nothing is asked of the network
        found = layer_sums(model, calibration, "use", count_use)
        for a, b in zip(found, whole, strict=True):
            np.testing.assert_array_equal(a["use"], b["use"])
    assert asked == [0, 1, 1, 2]
    # Nothing is taken of other parameters, or of a network that does otherwise with the same.
    one_expert = model.of(tiny(dataclasses.replace(DIT_MOE, top_k=1)).model, model.parameters)
    for number, other in enumerate((model_of(DIT_MOE, seed=1), one_expert), start=1):
        layer_sums(other, calibration, "use", count_use)
        assert asked == [0, 1, 1, 2] + number * [0, 1, 2]


def test_an_expert_without_tokens_goes_first_and_masked_nothing_is_lost():
    model = without_third(BIASED)
    calibration = shown(model)
    for worth_E in worth_of(model, "use", calibration, 0):
        assert worth_E[2] == 0
        assert worth_E.sum() == 3 * 6 * 16 * 2
    masked = drop(model, DropSettings(keep=3, router="mask"), calibration)
    assert masked.told["experts"] == [[[0], [1], [3]]] * 2
    np.testing.assert_array_equal(answer(masked.model), answer(model))
    assert [(m.num_experts, m.columns) for m in mixtures(masked.model)] == [(3, 4)] * 2
    dropped = drop(model, DropSettings(keep=3), calibration)
    assert np.abs(answer(dropped.model) - answer(model)).max() > 1e-3  # another denominator


def test_dropped_nothing_is_lost_where_weights_are_of_the_chosen_alone():
    model = without_third(RENORMALISED)
    dropped = drop(model, DropSettings(keep=3), shown(model)).model
    np.testing.assert_allclose(answer(dropped), answer(model), atol=1e-6)
    assert [(m.num_experts, m.columns) for m in mixtures(dropped)] == [(3, None)] * 2


def test_masks_of_routers_without_a_bias():
    """An expert that is gone is not chosen; the others keep their weights."""
    model = model_of(PROMOE)
    done = drop(model, DropSettings(keep=2, by="random", router="mask"), None)
    (moe,) = mixtures(done.model)
    assert (moe.num_experts, moe.columns, moe.router.name) == (2, 4, "prototype")
    ((first, *_),) = [[group[0] for group in layer] for layer in done.told["experts"]]
    build = functional(done.model.config.model)
    inputs = next(iter(shown(model).batches()))
    (routing,) = build(dict(done.model.parameters))(inputs.x, inputs.t, inputs.y).routing
    (before,) = functional(model.config.model)(dict(model.parameters))(
        inputs.x, inputs.t, inputs.y
    ).routing
    assert set(np.unique(routing.expert)) <= {0, 1, 2, 3}  # two routed, the unconditional, none
    np.testing.assert_array_equal(routing.scores, before.scores)
    same = (np.asarray(before.expert) == first) & (np.asarray(routing.expert) == 0)
    assert same.any()
    np.testing.assert_array_equal(routing.weight[same], before.weight[same])


@pytest.mark.parametrize("moe", [DIT_MOE, PROMOE], ids=["dit_moe", "promoe"])
@pytest.mark.parametrize("means_up_to", [0, 9])
def test_twins_become_one_and_remapped_nothing_is_lost(moe, means_up_to):
    model = twins(moe)
    total = 3 * len(mixtures(model))
    settings = StunSettings(total=total, router="remap", means_up_to=means_up_to)
    done = stun(model, settings, None)
    assert done.told["groups"] == [[[0], [1, 3], [2]]] * len(mixtures(model))
    expected = answer(model)
    np.testing.assert_allclose(answer(done.model), expected, atol=1e-6 * np.abs(expected).max())
    if moe is DIT_MOE:
        dropped = stun(model, dataclasses.replace(settings, router="drop"), None).model
        assert np.abs(answer(dropped) - expected).max() > 1e-2 * np.abs(expected).max()


def test_a_dropped_twin_is_stood_in_for_by_the_other():
    model = twins(DIT_MOE)

    def quiet(w_out: np.ndarray) -> None:
        w_out[:, 3] = w_out[:, 1]

    model = changed(model, "experts.w_out", quiet)
    fewer = drop(model, DropSettings(keep=3, by="random", seed=3, router="remap"), None)
    gone = [set(range(4)) - {g[0] for g in layer} for layer in fewer.told["experts"]]
    stand_in = fewer.model.parameters["trunk.segments.0.blocks.0.feed_forward.stand_in"]
    for layer, missing in enumerate(gone):
        (e,) = missing
        if e in (1, 3):
            other = [g[0] for g in fewer.told["experts"][layer]].index(4 - e)
            assert stand_in[layer, e] == other
    assert any(missing <= {1, 3} for missing in gone)


def test_the_best_subset_is_the_one_that_output_leaves():
    """All ways to do without an expert in each layer, by the error of the prediction. Tokens are
    sure of their choice, so that what they have in place of one that is gone weighs little."""

    def faint(w_out: np.ndarray) -> None:
        w_out[:, 1] *= 1e-3

    def sure(kernel: np.ndarray) -> None:
        kernel *= 4

    model = changed(model_of(DIT_MOE, seed=1), "experts.w_out", faint)
    model = changed(model, "router.kernel", sure)
    calibration = shown(model)
    done = drop(model, DropSettings(keep=3, by="output", router="mask"), calibration)
    whole, errors = answers(calibration, model)[0], {}
    ways = list(itertools.product(range(4), repeat=2))
    masked = [_without(model, gone) for gone in ways]
    for gone, found in zip(ways, answers(calibration, *masked), strict=True):
        errors[gone] = float(np.square(found - whole).mean())
    best = min(errors, key=lambda gone: errors[gone])
    left = [[e for e in range(4) if e != gone] for gone in best]
    assert done.told["experts"] == [[[e] for e in layer] for layer in left]
    assert sorted(errors.values())[-1] > 100 * errors[best]


def _without(model: Model, gone: tuple[int, ...]) -> Model:
    fewer = [kept_alone(np.array([i for i in range(4) if i != e]), 4) for e in gone]
    return with_fewer(model, fewer, "mask").model


def test_a_total_is_met_exactly_and_layers_differ():
    worth = [np.array([9.0, 1, 1, 1]), np.array([4.0, 3, 3, 2])]
    for total in range(4, 9):
        chosen = best_of_all(worth, [DIT_MOE] * 2, total)
        assert sum(map(len, chosen)) == total
        assert all(len(kept_K) >= 2 for kept_K in chosen)
    assert [kept_K.tolist() for kept_K in best_of_all(worth, [DIT_MOE] * 2, 6)] == [
        [0, 1],
        [0, 1, 2, 3],
    ]
    network = model_of(DIT_MOE).config.model
    assert [total_left(network, None, share) for share in (0.0, 0.2, 0.5)] == [8, 6, 4]
    for total, share in ((3, None), (9, None), (None, 0.6)):
        with pytest.raises(ConfigError, match=r"allowed: 4 \(each layer's top_k\) to 8"):
            total_left(network, total, share)


def test_layers_of_other_numbers_are_segments():
    model = model_of(DIT_MOE)
    done = stun(model, StunSettings(total=7), None)
    numbers = [m.num_experts for m in mixtures(done.model)]
    assert sorted(numbers) == [3, 4]
    assert [segment.depth for segment in done.model.config.model.segments] == [1, 1]
    assert np.isfinite(answer(done.model)).all()
    whole = numbers.index(4)
    for path, value in done.model.parameters.items():
        if path.startswith(f"trunk.segments.{whole}."):
            before = model.parameters[path.replace(f"segments.{whole}", "segments.0")]
            np.testing.assert_array_equal(value[0], before[whole])


def test_tokens_of_cheap_experts_keep_them():
    model = model_of(MOE_PLUS_PLUS)
    lot = DropSettings(keep=2, by="random")
    # Its router's scores go to the next layer's, of which others may be left.
    with pytest.raises(ConfigError, match="hands its scores on"):
        drop(model, lot, None)
    masked = drop(model, dataclasses.replace(lot, router="mask"), None).model
    assert np.isfinite(answer(masked)).all()
    alone = MixedTopKRouterConfig(gating_residual=False)
    done = drop(model_of(dataclasses.replace(MOE_PLUS_PLUS, router=alone)), lot, None)
    assert [(m.num_experts, m.scored_experts) for m in mixtures(done.model)] == [(2, 6)] * 2
    assert np.isfinite(answer(done.model)).all()


def test_clusters_by_hand():
    """1 and 2 are near, 0 and 1 nearly so, 0 and 2 are not: complete linkage refuses the three."""
    distance = np.array([[0, 2, 9, 5], [2, 0, 1, 6], [9, 1, 0, 7], [5, 6, 7, 0]], float)
    grouped = {
        t: [g.tolist() for g in clusters(distance, t, 1)] for t in (-np.inf, 1.0, 1.5, 6.5, 99.0)
    }
    assert grouped[-np.inf] == grouped[1.0] == [[0], [1], [2], [3]]
    assert grouped[1.5] == [[0], [1, 2], [3]]
    assert grouped[6.5] == [[0, 3], [1, 2]]
    assert grouped[99.0] == [[0, 1, 2, 3]]
    assert len(clusters(distance, 99.0, 3)) == 3


def test_united_experts_are_nearer_than_the_threshold_to_the_pair():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(6, 3))
    distance = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
    for threshold in (1.0, 2.0, 3.0):
        for group in clusters(distance, threshold, 1):
            for a in group:
                near = [distance[a, b] < threshold for b in group if b != a]
                assert not near or any(near)


def test_one_threshold_leaves_exactly_as_many_or_says_so():
    rng = np.random.default_rng(1)
    rows = [rng.normal(size=(6, 4)) for _ in range(2)]
    distances = [np.linalg.norm(r[:, None] - r[None], axis=-1) for r in rows]
    hit = []
    for total in range(4, 13):
        try:
            found, threshold = clusters_of_all(distances, [2, 2], total)
        except ConfigError as error:
            assert f"total is {total}, which no threshold leaves" in str(error)  # noqa: PT017
            continue
        hit.append(total)
        assert sum(map(len, found)) == total
        for distance, groups in zip(distances, found, strict=True):
            assert [g.tolist() for g in clusters(distance, threshold, 2)] == [
                g.tolist() for g in groups
            ]
    assert len(hit) >= 7
    with pytest.raises(ConfigError, match="allowed: such as 2 or 4"):
        clusters_of_all([np.ones((3, 3)) - np.eye(3), np.full((1, 1), 0.0)], [1, 1], 3)


@pytest.mark.parametrize(
    ("moe", "step", "told"),
    [
        (None, DropSettings(keep=2, by="random"), "is dense"),
        (UNLIKE, DropSettings(keep=2, by="random"), "moe.unlike has gelu, gru"),
        (DIT_MOE, DropSettings(keep=1, by="random"), "keep 1 of its 4 experts; allowed: 2"),
        (DIT_MOE, StunSettings(total=3), "total is 3 of the experts of all layers; allowed: 4"),
        (
            dataclasses.replace(DIT_MOE, router=ExpertChoiceRouterConfig()),
            DropSettings(keep=2, by="random"),
            "router is 'expert_choice'",
        ),
        (None, SparsifySettings(share=0.5, by="magnitude"), "is dense"),
        (PROMOE, SlimSettings(hidden=8, by="magnitude"), None),
        (DIT_MOE, SlimSettings(hidden=8, by="magnitude"), None),
    ],
)
def test_what_does_not_fit_is_one_sentence(moe, step, told):
    if told is None:
        apply_step(model_of(moe), step, None)
        return
    with pytest.raises(ConfigError, match=told):
        apply_step(model_of(moe), step, None)


def test_a_model_with_columns_is_sampled_from_and_no_more():
    done = drop(model_of(DIT_MOE), DropSettings(keep=3, by="random", router="mask"), None)
    config = done.model.config
    with pytest.raises(ConfigError, match="columns for which other experts stand in"):
        build_parts(config)
    with pytest.raises(ConfigError, match=r"model\.moe\.columns"):
        constructor_arguments("dit-moe", config.model, config.objective)
    with pytest.raises(ConfigError, match="columns for experts that are gone already"):
        check_order_free(config.model)
    with pytest.raises(ConfigError, match="columns for experts that are gone already"):
        drop(done.model, DropSettings(keep=2, by="random"), None)
    with pytest.raises(pydantic.ValidationError, match="columns is 2"):
        dataclasses.replace(DIT_MOE, columns=2)


def test_all_pairs_of_two_choices_are_counted():
    """Against a count by hand of the best two scores of each token."""
    model = model_of(DIT_MOE)
    calibration = shown(model, null_share=0.0)
    sums = layer_sums(model, calibration, "choices", count_choices)
    build = functional(model.config.model)
    look = jax.jit(lambda p, x, t, y: build(p)(x, t, y).routing)
    counted = np.zeros((2, 4, 4))
    for inputs in calibration.batches():
        (routing,) = look(dict(model.parameters), inputs.x, inputs.t, inputs.y)
        for layer, scores in enumerate(np.asarray(routing.scores)):
            for best in np.argsort(-scores, axis=1)[:, :2]:
                for a, b in itertools.permutations(best, 2):
                    counted[layer, a, b] += 1
    for layer, both in enumerate(sums):
        np.testing.assert_array_equal(both["both"], counted[layer])
