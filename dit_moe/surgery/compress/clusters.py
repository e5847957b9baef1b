"""Groups of experts that are near each other, and one threshold for all layers that leaves exactly
so many groups (STUN, Lee et al. 2024)."""

from collections.abc import Sequence

import numpy as np

from dit_moe.config import ConfigError


def clusters(distance_ExE: np.ndarray, threshold: float, least: int) -> list[np.ndarray]:
    """Groups of experts, as STUN's public code makes them, by their first members.

    Nearest pairs below the threshold are united one after another; of equal distances the first.
    It is complete linkage in part: of the pairs between two groups, those with one of the two
    experts that are nearest must lie below the threshold, others are not looked at. A pair that is
    refused once is so for good.

    Args:
      distance_ExE: symmetric; the diagonal is not read.
      threshold: what a distance must be below.
      least: as few groups as there may be.
    """
    left_ExE = distance_ExE.astype(np.float64)
    np.fill_diagonal(left_ExE, np.inf)
    group_E, number = np.arange(len(left_ExE)), len(left_ExE)
    while number > least and left_ExE.min(initial=np.inf) < threshold:
        u, v = np.unravel_index(left_ExE.argmin(), left_ExE.shape)
        of_u, of_v = (np.flatnonzero(group_E == group_E[e]) for e in (u, v))
        between = np.concatenate([left_ExE[of_u, v], left_ExE[of_v, u]])
        if between.max() < threshold:
            left_ExE[of_u, v] = left_ExE[v, of_u] = np.inf
            left_ExE[of_v, u] = left_ExE[u, of_v] = np.inf
            group_E[of_v] = group_E[u]
            number -= 1
        left_ExE[u, v] = left_ExE[v, u] = np.inf
    groups = [np.flatnonzero(group_E == group) for group in np.unique(group_E)]
    return sorted(groups, key=lambda group: int(group[0]))


def clusters_of_all(
    distances: Sequence[np.ndarray], least: Sequence[int], total: int
) -> tuple[list[list[np.ndarray]], float]:
    """Groups in every layer, exactly so many together, by one threshold for all; and the threshold.

    It is searched by halving among the distances that there are, on the footing that a higher one
    leaves no more groups.

    Args:
      distances: [E, E] of each layer, comparable between layers.
      least: as few groups as a layer may have.
      total: how many groups all layers shall have.

    Raises:
      ConfigError: no threshold leaves as many; the message tells what is near.
    """
    pairs = [d[np.triu_indices(len(d), 1)] for d in distances]
    # Below the lowest distance nothing is united, above the highest all that may be.
    steps = np.unique(np.concatenate([*pairs, [0.0]]).astype(np.float64))
    thresholds = [-np.inf, *np.nextafter(steps, np.inf)]

    def grouped(threshold: float) -> list[list[np.ndarray]]:
        pairs = zip(distances, least, strict=True)
        return [clusters(distance_ExE, threshold, fewest) for distance_ExE, fewest in pairs]

    low, high, seen = 0, len(thresholds) - 1, set()
    while low <= high:
        middle = (low + high) // 2
        found = grouped(thresholds[middle])
        number = sum(map(len, found))
        if number == total:
            return found, float(thresholds[middle])
        seen.add(number)
        low, high = (middle + 1, high) if number > total else (low, middle - 1)
    above = min((n for n in seen if n > total), default=None)
    below = max((n for n in seen if n < total), default=None)
    near = " or ".join(str(n) for n in (below, above) if n is not None)
    raise ConfigError(f"total is {total}, which no threshold leaves; allowed: such as {near}")
