"""Rounds of travel: the four closed forms against simulated streams, and the best number."""

import dataclasses
import itertools
import sys

import numpy as np
import pytest

from benchmarks import schedule as benchmark
from dit_moe.commands import plan as command
from dit_moe.config import TrainConfig
from dit_moe.config.presets import preset
from dit_moe.plan.memory import abstract_mesh
from dit_moe.plan.rounds import Costs, rounds_of
from dit_moe.plan.schedule import Layer, Operation, cases, choose, fit, room, split


def simulated(layer: Layer, rounds: int, gradients: float = 0.0) -> float:
    """When the last part is back: three streams, each of which does its list in order, an entry as
    soon as the stream is free and what it waits for is done."""
    there = [("there", part) for part in range(rounds)]
    streams = {
        "between hosts": [*there, ("gradients", 0), *(("back", part) for _, part in there)],
        "inside": [*(("gather", part) for _, part in there), *(("scatter", p) for _, p in there)],
        "arithmetic": [("compute", part) for _, part in there],
    }
    seconds = {
        "there": layer.exchange.seconds(rounds),
        "gather": layer.gather.seconds(rounds),
        "compute": layer.experts.seconds(rounds),
        "scatter": layer.scatter.seconds(rounds),
        "back": layer.exchange.seconds(rounds),
        "gradients": gradients,
    }
    way = ("there", "gather", "compute", "scatter", "back")
    before = {(b, part): (a, part) for a, b in itertools.pairwise(way) for _, part in there}
    done: dict[tuple[str, int], float] = {}
    free = dict.fromkeys(streams, 0.0)
    while any(streams.values()):
        for name, waiting in streams.items():
            while waiting and (waiting[0] not in before or before[waiting[0]] in done):
                entry = waiting.pop(0)
                ready = done.get(before.get(entry, entry), 0.0)
                free[name] = max(free[name], ready) + seconds[entry[0]]
                done[entry] = free[name]
    return max(done["back", part] for _, part in there)


def drawn(rng: np.random.Generator, *, inside: bool = True) -> Layer:
    """Operations of any proportion; the way inside a host takes as long there as back."""

    def operation() -> Operation:
        alpha, beta = rng.uniform(1e-6, 2e-4), rng.uniform(1e-11, 1e-9)
        return Operation(alpha, beta, rng.uniform(1e5, 1e8))

    there = operation() if inside else Operation()
    return Layer(operation(), operation(), there, there)


@pytest.mark.parametrize("inside", [True, False])
def test_the_largest_of_four_times_is_that_of_the_streams(inside):
    rng, seen = np.random.default_rng(0), set()
    for _ in range(300):
        layer = drawn(rng, inside=inside)
        for rounds in (1, 2, 3, 7):
            for gradients in (0.0, rng.uniform(0, 0.3)):
                times = cases(layer, rounds, gradients)
                seen.add(times.index(max(times)))
                assert simulated(layer, rounds, gradients) == pytest.approx(max(times))
    assert seen == ({0, 1, 2, 3} if inside else {0, 1})


def test_the_conditions_of_the_paper_tell_the_cases():
    """Q1 to Q7 of FSMoE, where a gather takes as long as a scatter."""
    rng = np.random.default_rng(1)
    for _ in range(300):
        layer, r = drawn(rng), int(rng.integers(2, 9))
        gradients = rng.choice([0.0, rng.uniform(0, 0.3)])
        exchange, gather, compute = (
            o.seconds(r) for o in (layer.exchange, layer.gather, layer.experts)
        )
        inside = 2 * gather
        q1, q2 = exchange > gather, r * compute > 2 * (r - 1) * exchange
        q3, q4 = r * compute > (r - 1) * inside, gradients > inside
        q5 = gradients > r * compute - 2 * (r - 1) * exchange + inside
        q6 = gradients > r * inside - 2 * (r - 1) * exchange
        if q1:
            expected = (1 if q5 else 2) if q2 else (1 if q4 else 3)
        else:
            expected = (1 if q5 else 2) if q3 else (1 if q6 else 4)
        times = cases(layer, r, gradients)
        assert 1 + times.index(max(times)) == expected


def test_no_number_of_rounds_is_better():
    rng, found = np.random.default_rng(2), set()
    for _ in range(300):
        layers = [drawn(rng, inside=bool(rng.integers(2))) for _ in range(rng.integers(1, 4))]
        ready = rng.uniform(0, 0.3, len(layers)) * rng.integers(2)
        totals = [
            sum(max(cases(x, r)) for x in layers) + split([room(x, r) for x in layers], ready)[1]
            for r in range(1, 65)
        ]
        chosen = choose(layers, ready)
        assert chosen.seconds == pytest.approx(min(totals))
        if len(layers) == 1:  # the gradients of a layer are as one more of the four times says
            alone = [simulated(layers[0], r, sum(ready)) for r in (1, chosen.rounds, 64)]
            assert chosen.seconds == pytest.approx(min(alone))
        assert totals[chosen.rounds - 1] == pytest.approx(min(totals))
        found.add(chosen.rounds)
    assert len(found) > 10


def test_the_best_number_where_arithmetic_is_all():
    """Case 2 is least at sqrt((n_ag b_ag + n_rs b_rs + 2 n_a2a b_a2a) / alpha_exp)."""
    layer = Layer(
        Operation(1e-7, 1e-9, 1e5), Operation(1e-5, 1e-9, 1e8), *[Operation(1e-7, 1e-9, 1e5)] * 2
    )
    chosen = choose([layer])
    assert chosen.case == 2
    assert abs(chosen.rounds - np.sqrt(4 * 1e-4 / 1e-5)) < 1


def test_gradients_up_to_the_room_cost_nothing():
    rng = np.random.default_rng(3)
    for _ in range(100):
        layer, r = drawn(rng), int(rng.integers(1, 9))
        alone, free = max(cases(layer, r)), room(layer, r)
        assert free >= 0
        assert simulated(layer, r, free) == pytest.approx(alone)
        assert simulated(layer, r, free + 1e-3) == pytest.approx(alone + 1e-3)


def test_gradients_are_hidden_where_there_is_room():
    hidden, left = split([1.0, 0.0, 3.0, 1.0], [2.0, 1.0, 0.5, 2.0])
    assert hidden == [1.0, 0.0, 2.5, 1.0]
    assert left == 1.0
    # No other split leaves less: every part is hidden at its layer or after it.
    rng = np.random.default_rng(4)
    for _ in range(50):
        rooms, ready = rng.uniform(0, 1, 5), rng.uniform(0, 1, 5)
        least = max(ready[first:].sum() - rooms[first:].sum() for first in range(5))
        assert split(rooms, ready)[1] == pytest.approx(max(least, 0))


def test_the_fit_finds_what_was_planted():
    amounts = np.arange(1, 25) * 2**18 * 4.0
    assert fit(amounts, 2e-5 + 3e-11 * amounts) == pytest.approx((2e-5, 3e-11))
    noise = np.random.default_rng(5).normal(1, 0.02, len(amounts))
    found = fit(amounts, (2e-4 + 3e-11 * amounts) * noise)
    assert found == pytest.approx((2e-4, 3e-11), rel=0.1)
    # Times that fall with the amount have no negative cost.
    assert fit([1.0, 2.0], [2.0, 1.0])[1] == 0
    with pytest.raises(ValueError, match="two different amounts"):
        fit([1.0, 1.0], [1.0, 2.0])


COSTS = Costs(exchange_alpha=1e-5, exchange_beta=2e-11, expert_alpha=1e-5, expert_beta=4e-15)


def test_the_rounds_of_a_run_by_hand():
    config = preset("DiT-MoE-S/2-8E2A")
    train, mesh = TrainConfig(batch_size=256), abstract_mesh({"data": 2, "expert": 8})
    found = rounds_of(config.model, train, mesh, COSTS, gradients=6e-4, inside=0.0)
    assert found is not None
    sent = 16 * 256 * 2 * 384 * 4 * 7 / 8  # images, tokens, experts of a token; 12 layers
    flops = 16 * 256 * 2 * 2 * 3 * 384 * 1536
    one = 2 * (1e-5 + sent * 2e-11) + 1e-5 + flops * 4e-15
    back = 2 * (2.5e-5 + 1.5 * sent * 2e-11) + 3 * (1e-5 + flops * 4e-15)
    assert found.plain == pytest.approx(12 * (one + back) + 6e-4)
    assert found.forward > 1
    assert found.backward > 1
    assert found.best < found.plain
    # Arithmetic and links take their time in any case.
    assert found.best >= 12 * max(4 * flops * 4e-15, 5 * sent * 2e-11)
    # Where gradients fill the links anyway, fewer rounds are best.
    filled = rounds_of(config.model, train, mesh, COSTS, gradients=6e-3, inside=0.0)
    assert filled is not None
    assert filled.backward < found.backward
    again = dataclasses.replace(config.model, remat="full")
    twice = rounds_of(again, train, mesh, COSTS, gradients=6e-4, inside=0.0)
    assert twice is not None
    assert twice.plain == pytest.approx(found.plain + 12 * one)
    assert rounds_of(config.model, train, abstract_mesh({"data": 8}), COSTS, 0.0, 0.0) is None
    assert rounds_of(preset("DiT-S/2").model, train, mesh, COSTS, 0.0, 0.0) is None


def test_the_plan_tells_of_rounds_by_measured_costs(tmp_path, monkeypatch, capsys):
    """The benchmark, on eight virtual devices, writes what the command reads."""
    costs, config = tmp_path / "costs.json", "configs/digits.py:dit-moe"
    flags = ["--sizes=3", "--smallest=4096", "--repeats=1", f"--output={costs}"]
    monkeypatch.setattr(sys, "argv", ["schedule", f"--config={config}", *flags])
    benchmark.main()
    assert "| all-to-all of 8 |" in capsys.readouterr().out
    line = [f"--config={config}", "--devices=8", "--expert=8"]
    assert command.main(line) == 0
    assert "experts, their travel and the sums of gradients" in capsys.readouterr().out
    assert command.main([*line, f"--costs={costs}"]) == 0
    assert "experts, their travel and the sums of gradients" in capsys.readouterr().out
    costs.write_text('{"exchange_alpha": -1}')
    assert command.main([*line, f"--costs={costs}"]) == 2
    assert "exchange_alpha" in capsys.readouterr().err


def test_numbers_of_rounds_that_cannot_be(capsys):
    line = ["--config=configs/digits.py:dit-moe", "--config.model.forward_rounds=65"]
    assert command.main(line) == 2
    assert "forward_rounds is '65'" in capsys.readouterr().err
