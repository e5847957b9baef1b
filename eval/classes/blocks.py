"""Cuts a set into parts of one size, which have the same shares of classes."""

import numpy as np

_SEED = 0


def stratified_blocks(label_N: np.ndarray, size: int) -> list[np.ndarray]:
    """Disjoint sets of `size` rows, each with the shares of classes that the whole has.

    Args:
        label_N: integers [N].
        size: rows of a block.

    Returns:
        N // size arrays of ascending rows, int64 [size], drawn at random from a fixed seed; what
        is left over is unused. All rows in one block if N <= size.
    """
    if len(label_N) <= size:
        return [np.arange(len(label_N))]
    shuffled_N = np.random.RandomState(_SEED).permutation(len(label_N))
    # The share of its class that comes before a row: cut along it, every piece has all classes.
    rank_N = np.empty(len(label_N))
    for label in np.unique(label_N):
        rows = shuffled_N[label_N[shuffled_N] == label]
        rank_N[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    order_N = shuffled_N[np.argsort(rank_N[shuffled_N], kind="stable")]
    num_blocks = len(label_N) // size
    return [np.sort(block) for block in np.split(order_N[: num_blocks * size], num_blocks)]
