"""The fit: planted laws are found, within their intervals; what cannot be told is refused."""

import dataclasses

import numpy as np
import pytest

from dit_moe.config import ConfigError
from dit_moe.sweep.intervals import fit_with_intervals
from dit_moe.sweep.law import Law, Points, check_points, fit, levels
from dit_moe.sweep.measure import facts
from dit_moe.sweep.page import render
from dit_moe.sweep.pictures import iso_flops
from dit_moe.sweep.prediction import find_law, text
from dit_moe.sweep.record import Run
from dit_moe.sweep.table import Entry
from tests.report.test_report import Page
from tests.tiny import tiny

EXPONENTS = {"active": 0.4, "total": 0.3, "tokens": 0.5}
SIZES = {"active": 0.05, "total": 0.04, "tokens": 0.06}
LARGER = {"active": 1.6e7, "total": 2e8, "tokens": 8e8}


def planted(*names: str, noise: float, seed: int = 0, seeds: int = 2) -> tuple[Law, Points]:
    """A law and runs that follow it: a grid of experts, width and tokens, with noise."""
    grid = np.meshgrid([1e6, 2e6, 4e6, 8e6], [1, 4, 16], [1e8, 2e8, 4e8], indexing="ij")
    active, experts, tokens = (np.tile(x.ravel(), seeds) for x in grid)
    whole = {"active": active, "total": active * (0.3 + 0.7 * experts), "tokens": tokens}
    if names == ("total",):
        whole["total"] = np.tile([1e6, 2e6, 4e6, 8e6, 16e6], seeds)
    factors = {name: whole[name] for name in names}
    middle = {name: float(np.exp(np.log(x).mean())) for name, x in factors.items()}
    law = Law(0.2, middle, {n: SIZES[n] for n in names}, {n: EXPONENTS[n] for n in names})
    loss = law(factors)
    normal = np.random.default_rng(seed).standard_normal(len(loss))
    return law, Points(factors, loss * np.exp(noise * normal))


@pytest.mark.parametrize("names", [("active", "total", "tokens"), ("total",), ("tokens", "active")])
def test_a_law_without_noise_is_found_exactly(names):
    law, points = planted(*names, noise=0)
    found = fit(points)
    for name, number in law.numbers().items():
        assert found.numbers()[name] == pytest.approx(number, rel=0.02), name
    np.testing.assert_allclose(found(LARGER), law(LARGER), rtol=2e-3)
    assert found.at_the_edge == []


def test_one_run_that_went_wrong_hardly_counts():
    law, points = planted("active", "total", "tokens", noise=0)
    points.loss[5] *= 1.5
    np.testing.assert_allclose(fit(points)(LARGER), law(LARGER), rtol=0.01)


def test_a_planted_law_lies_in_its_intervals():
    law, points = planted("active", "total", "tokens", noise=0.005)
    fitted = fit_with_intervals(points, draws=40)
    found = fitted.numbers()
    for name, number in law.numbers().items():
        assert found[name].low <= number <= found[name].high, name
    assert found["a_total"].high - found["a_total"].low < 0.2
    told = fitted.predict(LARGER)
    assert told.low <= law(LARGER) <= told.high
    assert told.high - told.low < 0.1 * told.value


@pytest.mark.slow
def test_intervals_hold_what_they_promise():
    """9 in 10, over planted laws with noise of their own; less than 7 in 10 is no interval."""
    inside: dict[str, list[bool]] = {}
    for seed in range(24):
        law, points = planted("active", "total", "tokens", noise=0.005, seed=seed)
        fitted = fit_with_intervals(points, draws=60)
        for name, number in law.numbers().items():
            interval = fitted.numbers()[name]
            inside.setdefault(name, []).append(interval.low <= number <= interval.high)
        noise = 0.005 * np.random.default_rng(1000 + seed).standard_normal()
        told = fitted.predict(LARGER)
        inside.setdefault("one run", []).append(
            told.low <= law(LARGER) * np.exp(noise) <= told.high
        )
    assert {name: np.mean(found) >= 0.7 for name, found in inside.items()} == dict.fromkeys(
        inside, True
    )


def test_the_jacobian_is_that_of_the_residuals(monkeypatch):
    from scipy.optimize import check_grad

    from dit_moe.sweep import law as module

    seen = []

    def least_squares(residuals, first, jacobian, **settings):
        for i in range(3):
            error = check_grad(lambda p, i=i: residuals(p)[i], lambda p, i=i: jacobian(p)[i], first)
            seen.append(error)
        return dataclasses.make_dataclass("Result", ["x", "cost"])(first, 0.0)

    monkeypatch.setattr(module, "least_squares", least_squares)
    fit(planted("active", "total", "tokens", noise=0.01)[1])
    assert max(seen) < 1e-5


def test_levels_are_values_that_differ_by_more_than_a_tenth():
    np.testing.assert_array_equal(levels(np.array([200, 1, 1.05, 100, 0.98])), [2, 0, 0, 1, 0])


def test_what_runs_cannot_tell_is_refused():
    _, points = planted("active", "total", "tokens", noise=0)
    same = {**points.factors, "active": np.full(len(points.loss), 1e6)}
    with pytest.raises(ConfigError, match=r"factors has 'active', of which the runs have 1 level"):
        check_points(dataclasses.replace(points, factors=same))
    dense = {**points.factors, "total": 1.01 * points.factors["active"]}
    with pytest.raises(ConfigError, match=r"'active' and 'total', which vary together"):
        check_points(dataclasses.replace(points, factors=dense))
    with pytest.raises(ConfigError, match=r"a law of 3 numbers, and the runs have 3 different"):
        check_points(Points({"total": np.array([1, 2, 4, 4])}, np.ones(4)))
    rows = np.array([0, 13, 26, 31, 7])
    with pytest.raises(ConfigError, match=r"a law of 7 numbers, and the runs have 5 different"):
        check_points(points.rows(rows))


def test_a_loss_that_does_not_depend_on_a_factor_is_told():
    _, points = planted("total", noise=0)
    assert fit(dataclasses.replace(points, loss=np.full(10, 0.5))).at_the_edge == ["total"]
    rising = dataclasses.replace(points, loss=points.loss[::-1].copy())
    assert fit(rising).at_the_edge == ["total"]


def entries(noise: float = 0.002) -> list[Entry]:
    _, points = planted("total", noise=noise, seeds=3)
    config = tiny(None)
    found = []
    for i, (total, loss) in enumerate(zip(points.factors["total"], points.loss, strict=True)):
        held = total == points.factors["total"].max()
        run = Run(f"run-{i}", {"seed": str(i // 5), "total": str(total)}, config, held)
        numbers = {**facts(config), "parameters_total": total, "validation_loss": float(loss)}
        found.append(Entry(run, "done", numbers))
    return found


def test_a_run_that_was_held_out_is_predicted():
    findings = find_law(entries(), ["total"], "validation_loss")
    assert findings.runs == 12
    assert [p.run for p in findings.predictions] == ["run-4", "run-9", "run-14"]
    assert sum(p.holds for p in findings.predictions) >= 2
    said = text(findings)
    assert "validation_loss = E + A_total (parameters_total / " in said
    assert "run-4, held out: told 0." in said
    assert ", measured 0." in said


def test_the_held_out_runs_do_not_count():
    few = entries()
    wrong = [
        dataclasses.replace(e, row={**e.row, "validation_loss": 9.0}) if e.run.heldout else e
        for e in few
    ]
    one, other = (find_law(found, ["total"], "validation_loss") for found in (few, wrong))
    assert one.fitted.law == other.fitted.law
    assert [p.holds for p in other.predictions] == [False] * 3


REFUSED = {
    ("size", "validation_loss"): "factors is 'size'; allowed: active, total, tokens",
    ("total,total", "validation_loss"): "allowed: active, total, tokens, each once",
    ("total", "loss"): "loss is 'loss'; allowed: validation_loss",
    ("tokens", "validation_loss"): "factors has 'tokens', of which the runs have 1 level",
}


@pytest.mark.parametrize(("factors", "loss"), REFUSED)
def test_what_is_refused_names_the_field(factors, loss):
    with pytest.raises(ConfigError) as refused:
        find_law(entries(), factors.split(","), loss)
    assert REFUSED[factors, loss] in str(refused.value)


def test_a_run_without_the_loss_is_named():
    found = entries()
    found[3] = dataclasses.replace(found[3], row={**found[3].row, "validation_loss": None})
    with pytest.raises(ConfigError, match=r"which is None for run run-3"):
        find_law(found, ["total"], "validation_loss")


def test_the_page_has_the_law_and_what_it_predicts(tmp_path):
    found = entries()
    findings = find_law(found, ["total"], "validation_loss")
    page = Page(render(found, "<sweep>", tmp_path, "validation_loss", findings))
    numbers, predictions, runs = page.tables
    assert [row[0] for row in numbers[1:]] == ["E", "A_total", "a_total"]
    assert numbers[1][1] == f"{findings.fitted.law.floor:.4g}"
    assert [row[0] for row in predictions[1:]] == ["run-4", "run-9", "run-14"]
    assert predictions[1][5] in ("yes", "no")
    assert len(runs) == 1 + len(found)
    assert findings.formula in page.texts
    assert "<sweep>" in page.texts
    assert not page.tags.count("polyline")  # no run has a log


def test_a_page_before_any_run_is_done(tmp_path):
    open_runs = [dataclasses.replace(e, state="open", row=facts(tiny(None))) for e in entries()]
    page = Page(render(open_runs, "sweep", tmp_path, "validation_loss", None))
    assert "No run that is done has the column validation_loss." in page.texts


def test_a_line_for_every_number_of_flops():
    """Points are means over seeds, in the order of the parameters, and crosses are the law's."""
    twice = [
        dataclasses.replace(e, row={**e.row, "flops": 1e9 if i % 5 < 3 else 1.02e12})
        for i, e in enumerate(entries())
    ]
    findings = find_law(twice, ["total"], "validation_loss")
    figure = iso_flops(twice, "validation_loss", findings)
    _, axis = figure.axes
    assert figure.axes[0].get_legend_handles_labels()[1] == ["1e+09 FLOPs", "1e+12 FLOPs"]
    lines = [container.lines[0] for container in axis.containers]
    np.testing.assert_array_equal(lines[0].get_xdata(), [1e6, 2e6, 4e6])
    np.testing.assert_array_equal(lines[1].get_xdata(), [8e6, 16e6])
    means = [np.mean([e.row["validation_loss"] for e in twice[i::5]]) for i in range(5)]
    np.testing.assert_allclose(lines[1].get_xydata()[:, 1], means[3:])
    crosses = [line for line in axis.lines if line.get_marker() == "x"]
    np.testing.assert_allclose(
        crosses[0].get_xydata()[:, 1], findings.fitted.law({"total": np.array([1e6, 2e6, 4e6])})
    )
    figure.canvas.draw()
    labels = [text.get_text() for text in axis.get_xticklabels() if text.get_text()]
    assert {"1M", "2M", "3M", "5M", "10M"} <= {*labels}
    empty = [line.get_xdata() for line in axis.lines if line.get_markerfacecolor() == "none"]
    assert [16e6] in [list(x) for x in empty]
