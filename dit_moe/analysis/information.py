"""How much the choice of an expert depends on something, in bits."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

PERMUTATIONS = 99
"""How often what the choice might depend on is shuffled; 1 / 100 is the smallest p-value."""


def entropy(count: np.ndarray) -> np.ndarray:
    """Entropy in bits over the last axis, float64; 0 where there are no counts."""
    total = count.sum(axis=-1, keepdims=True)
    p = count / np.where(total, total, 1)
    return np.abs(np.sum(p * np.log2(np.where(p > 0, p, 1)), axis=-1))  # never -0


def mutual_information(count_XxE: np.ndarray) -> np.ndarray:
    """Mutual information in bits of the last two axes of a table of counts, float64.

    I(X; E) = H(X) + H(E) - H(X, E), of the observed frequencies.
    """
    *leading, x, e = count_XxE.shape
    joint = count_XxE.reshape(*leading, x * e)
    margins = entropy(count_XxE.sum(axis=-1)) + entropy(count_XxE.sum(axis=-2))
    return margins - entropy(joint)


@dataclasses.dataclass(frozen=True)
class Dependence:
    """Mutual information of expert and something, of L layers."""

    bits: np.ndarray
    """[L]: of the observed frequencies. Too high, the fewer images the more."""
    chance: np.ndarray
    """[L]: the mean of what is found if there is no dependence."""
    p_value: np.ndarray
    """[L]: how often there is as much without a dependence."""


def dependence_within(
    count_NxXxLxE: np.ndarray, bin_X: np.ndarray, rng: np.random.Generator
) -> Dependence:
    """Dependence of the expert on the bin of X, which takes all its values in every image.

    Chance is found by permuting the values of X within every image: what an image shows, its
    tokens share, and that alone must not count as a dependence. Values and not bins are permuted:
    bins may hold unequally many.
    """

    def table(count_NxXxLxE: np.ndarray) -> np.ndarray:
        count_BxLxE = np.zeros((bin_X.max() + 1, *count_NxXxLxE.shape[2:]), np.int64)
        np.add.at(count_BxLxE, bin_X, count_NxXxLxE.sum(axis=0, dtype=np.int64))
        return count_BxLxE

    def tables() -> Iterator[np.ndarray]:
        order_NxX = np.tile(np.arange(count_NxXxLxE.shape[1]), (len(count_NxXxLxE), 1))
        while True:
            order_NxX = rng.permuted(order_NxX, axis=1)
            yield table(np.take_along_axis(count_NxXxLxE, order_NxX[:, :, None, None], axis=1))

    return _against_chance(table(count_NxXxLxE), tables())


def dependence_between(
    count_NxLxE: np.ndarray, class_N: np.ndarray, num_classes: int, rng: np.random.Generator
) -> Dependence:
    """Dependence of the expert on the class, of which every image has one.

    Chance is found by permuting the classes of the images, whose tokens stay together.
    """

    def table(class_N: np.ndarray) -> np.ndarray:
        count_YxLxE = np.zeros((num_classes, *count_NxLxE.shape[1:]), np.int64)
        np.add.at(count_YxLxE, class_N, count_NxLxE)
        return count_YxLxE

    def tables() -> Iterator[np.ndarray]:
        while True:
            yield table(rng.permutation(class_N))

    return _against_chance(table(class_N), tables())


def _against_chance(count_XxLxE: np.ndarray, shuffled: Iterator[np.ndarray]) -> Dependence:
    def bits(count_XxLxE: np.ndarray) -> np.ndarray:
        return mutual_information(count_XxLxE.swapaxes(0, 1))

    bits_L = bits(count_XxLxE)
    bar = tqdm(range(PERMUTATIONS), unit="permutation", desc="chance", leave=False)
    chance_PxL = np.stack([bits(next(shuffled)) for _ in bar])
    # Rounding must not tell apart what is equal.
    as_much_L = np.sum(chance_PxL >= bits_L - 1e-9, axis=0)
    return Dependence(bits_L, chance_PxL.mean(axis=0), (1 + as_much_L) / (1 + PERMUTATIONS))
