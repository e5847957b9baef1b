"""Placing groups of tokens and experts: solved cases, bounds, and exhaustive search."""

import itertools

import numpy as np
import pytest

from dit_moe.config import ConfigError
from dit_moe.placement.cocluster import Clusters, cocluster, local_share


def blocks(rng: np.random.Generator, devices: int, rows: int, experts: int) -> np.ndarray:
    """Groups of tokens that use the experts of one block alone, in any order: [R, E]."""
    row_R, expert_E = np.repeat(np.arange(devices), rows), np.repeat(np.arange(devices), experts)
    count_RxE = rng.integers(1, 20, (len(row_R), len(expert_E)))
    count_RxE = count_RxE * (row_R[:, None] == expert_E)
    return count_RxE[rng.permutation(len(row_R))][:, rng.permutation(len(expert_E))]


def one_stratum(count_RxE: np.ndarray) -> np.ndarray:
    return np.zeros(len(count_RxE), int)


def room(devices: int, experts: int) -> np.ndarray:
    return np.full(devices, experts // devices)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_a_random_balanced_placement_keeps_one_in_as_many_as_devices(devices):
    rng = np.random.default_rng(0)
    count_RxE = rng.integers(0, 50, (64, 16))
    shares = []
    for _ in range(2000):
        row_R = rng.permutation(np.repeat(np.arange(devices), 64 // devices))
        expert_E = rng.permutation(np.repeat(np.arange(devices), 16 // devices))
        shares.append(local_share([count_RxE], np.eye(devices)[row_R], [expert_E]))
    error = np.std(shares) / np.sqrt(len(shares))
    assert abs(np.mean(shares) - 1 / devices) < 4 * error
    # Where all groups use all experts alike, no placement is any better.
    even = np.ones((64, 16))
    found = cocluster([even], one_stratum(even), [room(devices, 16)])
    assert found.shares[-1] == pytest.approx(1 / devices)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_a_block_diagonal_table_is_solved(devices):
    for seed in range(5):
        count_RxE = blocks(np.random.default_rng(seed), devices, rows=6, experts=2)
        found = cocluster([count_RxE], one_stratum(count_RxE), [room(devices, 2 * devices)])
        assert found.shares[-1] == pytest.approx(1)


def test_layers_share_where_tokens_lie():
    """Two layers, block-diagonal by the same groups, each with its own experts."""
    rng, row_R = np.random.default_rng(1), np.repeat(np.arange(4), 5)
    counts = []
    for experts in (8, 4):
        expert_E = rng.permutation(np.repeat(np.arange(4), experts // 4))
        counts.append(rng.integers(1, 9, (20, experts)) * (row_R[:, None] == expert_E))
    found = cocluster(counts, np.zeros(20, int), [room(4, 8), room(4, 4)])
    assert found.shares[-1] == pytest.approx(1)
    assert local_share(counts, found.rows, found.experts) == pytest.approx(found.shares[-1])


def check_balance(found: Clusters, stratum_R: np.ndarray, rooms: list[np.ndarray]) -> None:
    np.testing.assert_allclose(found.rows.sum(axis=1), 1)
    for stratum in np.unique(stratum_R):
        of_G = found.rows[stratum_R == stratum].sum(axis=0)
        np.testing.assert_allclose(of_G, of_G.mean())
    for device_E, room_G in zip(found.experts, rooms, strict=True):
        np.testing.assert_array_equal(np.bincount(device_E, minlength=len(room_G)), room_G)


def test_the_share_never_falls_and_all_is_even():
    rng = np.random.default_rng(2)
    for _ in range(20):
        # 10 groups of each stratum on 4 devices: they are cut. One device has no routed expert.
        counts = [rng.gamma(0.3, size=(30, 12)) for _ in range(2)]
        stratum_R, rooms = np.arange(30) % 3, [np.array([4, 4, 4, 0]), room(4, 12)]
        found = cocluster(counts, stratum_R, rooms, starts=3)
        assert (np.diff(found.shares) >= -1e-12).all()
        assert len(found.shares) > 2
        check_balance(found, stratum_R, rooms)


@pytest.mark.parametrize(("devices", "experts", "rows"), [(2, 4, 6), (3, 6, 6), (2, 6, 4)])
def test_no_placement_is_better(devices, experts, rows):
    rng = np.random.default_rng(3)
    row_places = set(itertools.permutations(np.repeat(np.arange(devices), rows // devices)))
    expert_places = {
        order
        for order in itertools.permutations(np.repeat(np.arange(devices), experts // devices))
        if order[0] == 0  # devices may change their names
    }
    for _ in range(3):
        count_RxE = rng.gamma(0.5, size=(rows, experts))
        best = 0.0
        for expert_E in expert_places:
            on_RxG = count_RxE @ np.eye(devices)[list(expert_E)]
            for row_R in row_places:
                best = max(best, on_RxG[np.arange(rows), list(row_R)].sum())
        rooms = [room(devices, experts)]
        found = cocluster([count_RxE], one_stratum(count_RxE), rooms, starts=32)
        assert found.shares[-1] == pytest.approx(best / count_RxE.sum())


def test_groups_that_would_be_cut_too_fine_are_refused():
    with pytest.raises(ConfigError, match=r"devices is 16 with 1001 groups.*allowed: 8,192 parts"):
        cocluster([np.ones((1001, 16))], np.zeros(1001, int), [room(16, 16)])
