"""Groups of tokens and experts that belong together, each spread evenly over devices.

As in Speculative MoE (2503.04398), groups of tokens go to devices and experts to devices so that as
many assignments as may be stay on theirs. Where tokens lie, the best place of every expert is an
assignment problem, and where experts lie, the best place of every group is one too. Both are solved
exactly in turns, so that the share never falls; several beginnings guard against a poor end.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from dit_moe.config import ConfigError

MOST_ROWS = 8192
"""Parts of groups that one assignment problem has at most: its matrix is the square of this."""


class Clusters(NamedTuple):
    """Where tokens and experts lie."""

    rows: np.ndarray
    """[R, G] float64: share of each group of tokens on each device; a row sums to 1."""
    experts: tuple[np.ndarray, ...]
    """Of each layer [E] int: the device of each expert."""
    shares: tuple[float, ...]
    """The local share after each half of a turn, which never falls."""


def local_share(
    counts: Sequence[np.ndarray], rows_RxG: np.ndarray, experts: Sequence[np.ndarray]
) -> float:
    """The share of the assignments that need not travel.

    Args:
      counts: of each layer [R, E]: assignments of each group of tokens to each expert.
      rows_RxG: share of each group on each device.
      experts: of each layer [E]: the device of each expert.
    """
    kept = sum(
        float(np.sum(rows_RxG[:, device_E] * count_RxE))
        for count_RxE, device_E in zip(counts, experts, strict=True)
    )
    return kept / max(sum(float(count_RxE.sum()) for count_RxE in counts), 1.0)


def cocluster(
    counts: Sequence[np.ndarray],
    stratum_R: np.ndarray,
    rooms: Sequence[np.ndarray],
    *,
    starts: int = 8,
    seed: int = 0,
) -> Clusters:
    """Places groups of tokens, alike in all layers, and the experts of every layer.

    Args:
      counts: of each layer [R, E]: assignments of each group to each expert. Groups of a
        stratum have equally many tokens.
      stratum_R: [R] int: of every stratum each device gets an equal share, such as of each part of
        the time range, since a batch that is sampled is of one time. A group may be cut for it.
      rooms: of each layer [G] int: how many of its experts each device has; they sum to E.
      starts: how often to begin anew; the best end is kept.
      seed: of the beginnings.

    Raises:
      ConfigError: a stratum cannot be spread evenly without cutting groups into too many parts.
    """
    counts = [np.asarray(count_RxE, np.float64) for count_RxE in counts]
    rng, best = np.random.default_rng(seed), None
    for start in range(starts):
        layer = start % len(counts)
        count_RxE, room_G = counts[layer], rooms[layer]
        by_kinship = start < len(counts)
        device_E = _kin(count_RxE, room_G) if by_kinship else rng.permutation(_devices(room_G))
        rows_RxG = _place_rows(_by_device(count_RxE, device_E, len(room_G)), stratum_R)
        found = _alternate(counts, stratum_R, rooms, rows_RxG)
        if best is None or found.shares[-1] > best.shares[-1]:
            best = found
    assert best is not None
    return best


def _alternate(
    counts: Sequence[np.ndarray],
    stratum_R: np.ndarray,
    rooms: Sequence[np.ndarray],
    rows_RxG: np.ndarray,
) -> Clusters:
    shares: list[float] = []
    while True:
        experts = tuple(
            _place_experts(count_RxE.T @ rows_RxG, room_G)
            for count_RxE, room_G in zip(counts, rooms, strict=True)
        )
        shares.append(local_share(counts, rows_RxG, experts))
        affinity_RxG = sum(
            _by_device(count_RxE, device_E, rows_RxG.shape[1])
            for count_RxE, device_E in zip(counts, experts, strict=True)
        )
        rows_RxG = _place_rows(np.asarray(affinity_RxG), stratum_R)
        shares.append(local_share(counts, rows_RxG, experts))
        if len(shares) > 2 and shares[-1] <= shares[-3] + 1e-9:
            return Clusters(rows_RxG, experts, tuple(shares))


def _devices(room_G: np.ndarray) -> np.ndarray:
    """The device of every place for an expert."""
    return np.repeat(np.arange(len(room_G)), room_G)


def _by_device(count_RxE: np.ndarray, device_E: np.ndarray, devices: int) -> np.ndarray:
    """Assignments of each group to the experts of each device: [R, G]."""
    return count_RxE @ np.eye(devices)[device_E]


def _place_experts(affinity_ExG: np.ndarray, room_G: np.ndarray) -> np.ndarray:
    """The best device of every expert, [E] int."""
    place_E = _devices(room_G)
    return place_E[linear_sum_assignment(affinity_ExG[:, place_E], maximize=True)[1]]


def _place_rows(affinity_RxG: np.ndarray, stratum_R: np.ndarray) -> np.ndarray:
    """The best devices of all groups, [R, G] shares, of each stratum equally much on each."""
    rows_RxG, devices = np.zeros(affinity_RxG.shape), affinity_RxG.shape[1]
    for stratum in np.unique(stratum_R):
        own = np.flatnonzero(stratum_R == stratum)
        parts = devices // math.gcd(len(own), devices)
        if len(own) * parts > MOST_ROWS:
            raise ConfigError(
                f"devices is {devices} with {len(own)} groups of tokens that each have to be cut "
                f"into {parts}; allowed: {MOST_ROWS:,} parts in all, so fewer groups, or as many "
                f"as {devices} divides"
            )
        place_P = np.repeat(np.arange(devices), len(own) * parts // devices)
        affinity_PxP = np.repeat(affinity_RxG[own], parts, axis=0)[:, place_P]
        found_P = place_P[linear_sum_assignment(affinity_PxP, maximize=True)[1]]
        np.add.at(rows_RxG, (np.repeat(own, parts), found_P), 1 / parts)
    return rows_RxG


def _kin(count_RxE: np.ndarray, room_G: np.ndarray) -> np.ndarray:
    """Experts of the same groups of tokens together, [E] int: each device begins with the busiest
    that is left, and takes those that are most like what it has."""
    kinship_ExE, load_E = count_RxE.T @ count_RxE, count_RxE.sum(axis=0)
    device_E = np.full(len(load_E), -1)
    for device, room in enumerate(room_G):
        for place in range(room):
            near_E = kinship_ExE[device_E == device].sum(axis=0) if place else load_E
            device_E[np.argmax(np.where(device_E < 0, near_E, -1.0))] = device
    return device_E
