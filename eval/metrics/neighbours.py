"""Exact nearest neighbours and balls in flat memory, at the speed of float32 matrix products.

Squared distances come from |x|^2 + |y|^2 - 2 x . y in float32, with a proven bound on their error.
What the bound leaves open (ties, near-ties) is decided by float64 differences, so every answer is
that of all pairs in float64.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

_TILE = 2**24  # distances that are held at once: 64 MiB
_PAIR_TILE = 2**22  # values of a float64 block of differences: 32 MiB


class _Tile(NamedTuple):
    rows: slice
    squared: np.ndarray
    """float32 [R, M]."""
    error: np.ndarray
    """float32 [R]: no squared distance of the row is further off."""


def _tiles(f_NxD: np.ndarray, g_MxD: np.ndarray) -> Iterator[_Tile]:
    # Distances do not change when both sets move; small norms make small errors.
    centre_D = g_MxD.mean(0, dtype=np.float64)
    g_MxD = (g_MxD - centre_D).astype(np.float32)
    norm_M = np.square(g_MxD).sum(1)
    # Whatever the order of summation, a dot product of D terms is off by at most D u |x| |y|
    # (Higham, "Accuracy and Stability of Numerical Algorithms", section 3.1), and 2 |x| |y| is at
    # most |x|^2 + |y|^2. The norms and the rounding of the inputs take the rest.
    bound = (2 * g_MxD.shape[1] + 16) * np.finfo(np.float32).eps / 2
    rows = max(1, _TILE // len(g_MxD))
    for start in range(0, len(f_NxD), rows):
        f_RxD = (f_NxD[start : start + rows] - centre_D).astype(np.float32)
        norm_R = np.square(f_RxD).sum(1)
        squared_RxM = f_RxD @ g_MxD.T
        squared_RxM *= -2
        squared_RxM += norm_R[:, None]
        squared_RxM += norm_M
        yield _Tile(slice(start, start + len(f_RxD)), squared_RxM, bound * (norm_R + norm_M.max()))


def _pair_distances(
    f_NxD: np.ndarray, g_MxD: np.ndarray, row_P: np.ndarray, column_P: np.ndarray
) -> np.ndarray:
    """float64 [P]: distances by differences, so that copies are exactly 0 and ties are ties."""
    distance_P = np.empty(len(row_P))
    step = max(1, _PAIR_TILE // f_NxD.shape[1])
    for start in range(0, len(row_P), step):
        part = slice(start, start + step)
        difference_PxD = f_NxD[row_P[part]].astype(np.float64) - g_MxD[column_P[part]]
        distance_P[part] = np.sqrt(np.square(difference_PxD, out=difference_PxD).sum(1))
    return distance_P


def nearest(f_NxD: np.ndarray, g_MxD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of `g_MxD` to every row of `f_NxD`, by Euclidean distance.

    Args:
        f_NxD, g_MxD: [N, D] and [M, D] real numbers.
        k: from 1 to M.

    Returns:
        distance_Nxk: float64, ascending, in the unit of the features.
        index_Nxk: int64; of equally near rows the first comes first.

    Raises:
        ValueError: the widths differ, or k is not from 1 to M.
    """
    _check_widths(f_NxD, g_MxD)
    if not 1 <= k <= len(g_MxD):
        raise ValueError(f"{k} neighbours of {len(g_MxD)} features were asked for.")
    # Copies would leave every pair to the float64 differences. Of equal rows of f one answers for
    # all, and of equal rows of g none but the first k can be among the nearest k.
    group_N, group_M = _groups(f_NxD), _groups(g_MxD)
    f_NxD = f_NxD[np.unique(group_N, return_index=True)[1]]
    order_M = np.argsort(group_M, kind="stable")
    sorted_M = group_M[order_M]
    rank_M = np.arange(len(g_MxD)) - np.searchsorted(sorted_M, sorted_M)
    column_K = np.sort(order_M[rank_M < k])
    distance_Nxk, index_Nxk = _nearest(f_NxD, g_MxD[column_K], k)
    return distance_Nxk[group_N], column_K[index_Nxk][group_N]


def _groups(f_NxD: np.ndarray) -> np.ndarray:
    """int64 [N]: the same number for rows that are equal to the bit, from 0 as they appear."""
    number: dict[bytes, int] = {}
    digests = (hashlib.sha256(row.tobytes()).digest() for row in f_NxD)
    return np.array([number.setdefault(d, len(number)) for d in digests], np.int64)


def _nearest(f_NxD: np.ndarray, g_MxD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    distance_Nxk = np.empty((len(f_NxD), k))
    index_Nxk = np.empty((len(f_NxD), k), np.int64)
    for rows, squared_RxM, error_R in _tiles(f_NxD, g_MxD):
        # The k-th is at most one error above its estimate, the estimate of one nearer one more.
        limit_R = np.partition(squared_RxM, k - 1, axis=1)[:, k - 1] + 2 * error_R
        row_P, column_P = np.nonzero(squared_RxM <= limit_R[:, None])
        distance_P = _pair_distances(f_NxD[rows], g_MxD, row_P, column_P)
        order_P = np.lexsort((column_P, distance_P, row_P))
        first_R = np.searchsorted(row_P, np.arange(len(squared_RxM)))
        chosen_Rxk = order_P[first_R[:, None] + np.arange(k)]
        distance_Nxk[rows], index_Nxk[rows] = distance_P[chosen_Rxk], column_P[chosen_Rxk]
    return distance_Nxk, index_Nxk


def nearest_distances(
    f_NxD: np.ndarray, reference_MxD: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest reference of every row: how close samples come to being copies.

    Differences are formed before they are squared, so an exact copy has distance 0.

    Args:
        f_NxD, reference_MxD: [N, D] and [M, D] real numbers, M >= 1.

    Returns:
        distance_N: float64 [N], in the unit of the features.
        index_N: int64 [N], the row of `reference_MxD`; the first of equally near ones.

    Raises:
        ValueError: the widths differ, or there is no reference.
    """
    if len(reference_MxD) == 0:
        raise ValueError("There is no reference to compare with.")
    distance_Nx1, index_Nx1 = nearest(f_NxD, reference_MxD, 1)
    return distance_Nx1[:, 0], index_Nx1[:, 0]


def within(
    f_NxD: np.ndarray, g_MxD: np.ndarray, radii: Sequence[np.ndarray], closed: bool
) -> Iterator[tuple[slice, list[np.ndarray]]]:
    """Which pairs are within a distance of each other, in runs of rows of `f_NxD`.

    Args:
        f_NxD, g_MxD: [N, D] and [M, D] real numbers.
        radii: distances >= 0, each [N, 1] (balls around f) or [1, M] (balls around g).
        closed: whether a distance equal to the radius is within.

    Yields:
        rows: R of the N rows, in order.
        is_within: a bool [R, M] for each of `radii`.

    Raises:
        ValueError: the widths differ.
    """
    _check_widths(f_NxD, g_MxD)
    for rows, squared_RxM, error_R in _tiles(f_NxD, g_MxD):
        answers = []
        for radius in radii:
            radius = radius if len(radius) == 1 else radius[rows]
            limit, error_Rx1 = radius**2, error_R[:, None]
            if radius.shape[0] == 1:  # one limit a column: the rows' errors in one number
                error_Rx1 = error_R.max(keepdims=True)[:, None]
            is_in_RxM = squared_RxM < (limit - error_Rx1).astype(np.float32)
            is_open_RxM = squared_RxM <= (limit + error_Rx1).astype(np.float32)
            is_open_RxM ^= is_in_RxM
            row_P, column_P = np.nonzero(is_open_RxM)
            distance_P = _pair_distances(f_NxD[rows], g_MxD, row_P, column_P)
            radius_P = np.broadcast_to(radius, squared_RxM.shape)[row_P, column_P]
            is_in_RxM[row_P, column_P] = distance_P <= radius_P if closed else distance_P < radius_P
            answers.append(is_in_RxM)
        yield rows, answers


def _check_widths(f_NxD: np.ndarray, g_MxD: np.ndarray) -> None:
    if f_NxD.ndim != 2 or g_MxD.ndim != 2 or f_NxD.shape[1] != g_MxD.shape[1]:
        raise ValueError(
            f"Features have shapes {f_NxD.shape} and {g_MxD.shape}, but must be [N, D] and [M, D]."
        )
