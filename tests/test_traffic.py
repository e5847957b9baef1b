"""Closed forms of what travels: summed device by device."""

import itertools

import pytest

from dit_moe.config import TrainConfig
from dit_moe.config.presets import preset
from dit_moe.plan.memory import abstract_mesh, parameter_bytes
from dit_moe.plan.traffic import flat, hierarchical, traffic


@pytest.mark.parametrize(("members", "domain"), [(8, 8), (16, 8), (64, 8), (4, 8), (12, 4)])
def test_exchanges_are_those_of_rows_followed_one_by_one(members, domain):
    """A row for every device; in two steps it goes to the place of its device in the own host
    first."""
    inside = between = first = second = 0
    peers, neighbours = set(), set()
    for source, target in itertools.product(range(members), repeat=2):
        here, there = source // domain, target // domain
        if source != target:
            peers.add((source, target))
            inside += here == there
            between += here != there
        relay = here * domain + target % domain
        first += relay != source
        second += relay != target
        neighbours |= {(a, b) for a, b in ((source, relay), (relay, target)) if a != b}
    one, two = flat(members, members, domain), hierarchical(members, members, domain)
    assert (one.inside, one.between) == pytest.approx((inside / members, between / members))
    assert (two.inside, two.between) == pytest.approx((first / members, second / members))
    assert two.between == one.between
    assert one.messages == len(peers) / members
    assert two.messages == len(neighbours) / members


def test_the_bytes_of_a_step():
    config = preset("DiT-MoE-XL/2-8E2A")
    mesh = abstract_mesh({"data": 8, "expert": 8})
    found = traffic(config.model, TrainConfig(batch_size=256), mesh)
    rows = 4 * 256 * 2 * 28  # images, tokens, experts of a token, layers
    assert found.tokens == pytest.approx(5 * rows * 1152 * 4 * 7 / 8)
    parameters = parameter_bytes(config.model, mesh)
    assert found.gathered == pytest.approx(3 * (parameters.used - parameters.stored))
    assert found.reduced == pytest.approx(2 * parameters.stored * 7 / 8)
    assert traffic(config.model, TrainConfig(batch_size=256), abstract_mesh({})).tokens == 0


def test_the_bytes_of_slices():
    """Of 8 experts on 4 devices each, written out: rows go to three more, and of what a device
    stores it gives three quarters away for its own slice."""
    config, train = preset("DiT-MoE-XL/2-8E2A"), TrainConfig(batch_size=256)
    whole, sliced = (
        abstract_mesh({"data": 32 // (2 * n), "expert": 2, "tensor": n}) for n in (1, 4)
    )
    found = traffic(config.model, train, sliced)
    rows = 8 * 256 * 2 * 28  # images, tokens, experts of a token, layers
    assert found.slices == pytest.approx(5 * rows * 1152 * 4 * 3)
    assert found.tokens == traffic(config.model, train, whole).tokens
    # Four experts of three matrices and four times the width, over both axes.
    stored = 28 * 4 * 3 * 4 * 1152**2 * 4 / 4
    on_four, on_one = (parameter_bytes(config.model, mesh) for mesh in (sliced, whole))
    assert on_four.swapped == pytest.approx(stored * 3 / 4)
    assert on_one.used - on_four.used == pytest.approx(3 * stored)
    moved = on_four.used - on_four.stored + on_four.swapped
    assert found.gathered == pytest.approx(3 * moved)
    assert traffic(config.model, train, whole).slices == on_one.swapped == 0
