"""Bits under a budget: what each matrix gets so that all lose least together."""

from collections.abc import Sequence

import numpy as np

MOST_UNITS = 2**16
"""In so many units the budget is counted at most; sizes are rounded up to whole ones."""


def allocate(
    error_IxB: np.ndarray, size_I: np.ndarray, choices: Sequence[int], budget: int
) -> np.ndarray:
    """For each of I matrices one of B numbers of bits, so that the sum of errors is the least that
    the budget allows; of equal sums one with more bits.

    It is exact (dynamic programming over what is spent) where sizes have a common divisor that
    counts the budget in `MOST_UNITS`; else sizes are rounded up a little, and the budget is kept.

    Args:
      error_IxB: what a matrix loses with each number of bits.
      size_I: int, its weights.
      choices: the numbers of bits, ascending.
      budget: bits that all weights together may have.

    Returns:
      [I] int, of `choices`.

    Raises:
      ValueError: even the fewest bits are more than the budget.
    """
    size_I = np.asarray(size_I, np.int64)
    if int(size_I.sum()) * choices[0] > budget:
        raise ValueError(f"{budget} bits are fewer than all matrices with {choices[0]}")
    unit = max(int(np.gcd.reduce(size_I)), -(-budget // MOST_UNITS))
    # What is above the fewest bits, which all have.
    extra_IxB = -(-size_I[:, None] * (np.asarray(choices) - choices[0]) // unit)
    units = (budget - int(size_I.sum()) * choices[0]) // unit
    least_S = np.zeros(units + 1)  # by what is spent at most
    chosen = np.zeros((len(size_I), units + 1), np.int8)
    for item in range(len(size_I)):
        found_BxS = np.full((len(choices), units + 1), np.inf)
        for choice, extra in enumerate(extra_IxB[item]):
            if extra <= units:
                found_BxS[choice, extra:] = least_S[: units + 1 - extra] + error_IxB[item, choice]
        chosen[item] = len(choices) - 1 - found_BxS[::-1].argmin(axis=0)  # of equal ones the last
        least_S = found_BxS.min(axis=0)
    left, bits_I = units, np.zeros(len(size_I), np.int64)
    for item in reversed(range(len(size_I))):
        choice = chosen[item, left]
        bits_I[item] = choices[choice]
        left -= extra_IxB[item, choice]
    return bits_I
