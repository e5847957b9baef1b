"""Fidelity and variety by balls around features: precision, recall, density, coverage."""

from typing import NamedTuple

import numpy as np

from . import neighbours


class PrecisionRecall(NamedTuple):
    """Both from 0 to 1."""

    precision: float
    """Share of samples that look real."""
    recall: float
    """Share of real images that the samples cover."""


class DensityCoverage(NamedTuple):
    """Both near 1 for sets of one kind."""

    density: float
    """Balls of real images that hold a sample, over the k expected; may exceed 1."""
    coverage: float
    """Share of real images with a sample nearby, from 0 to 1."""


def radii(f_NxD: np.ndarray, k: int) -> np.ndarray:
    """float64 [N]: the distance of every row to its k-th nearest neighbour, itself not counted.

    A copy of a row counts as a neighbour, at distance 0.

    Raises:
        ValueError: N <= k.
    """
    if len(f_NxD) <= k:
        raise ValueError(f"There are {len(f_NxD)} images, but more than {k} are needed.")
    return neighbours.nearest(f_NxD, f_NxD, k + 1)[0][:, k]


def precision_recall(f_NxD: np.ndarray, real_MxD: np.ndarray, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall.

    Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models"
    (2019), eq. 1 and 2: a feature is on the manifold of a set if it is in the closed ball of any of
    the set's features, which reaches to that feature's k-th nearest neighbour within the set. ADM's
    evaluator (Dhariwal and Nichol, 2021) does the same with k = 3 on pooled features, 10,000 real
    images and all samples, but decides by distances in float16 where they are finite; here all
    decisions are those of float64.

    Args:
        f_NxD, real_MxD: features of the samples and of real images, N, M > k.
        k: neighbours.

    Raises:
        ValueError: k images or fewer, or the widths differ.
    """
    balls = radii(f_NxD, k)[:, None], radii(real_MxD, k)[None]
    looks_real_N = np.zeros(len(f_NxD), bool)
    is_covered_M = np.zeros(len(real_MxD), bool)
    for rows, (in_sample, in_real) in neighbours.within(f_NxD, real_MxD, balls, closed=True):
        looks_real_N[rows] = in_real.any(1)
        is_covered_M |= in_sample.any(0)
    return PrecisionRecall(float(looks_real_N.mean()), float(is_covered_M.mean()))


def density_coverage(f_NxD: np.ndarray, real_MxD: np.ndarray, k: int = 5) -> DensityCoverage:
    """Density and coverage.

    Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models" (2020), section
    3.2: balls around real images only. They are open, as in the authors' code: a set compared with
    itself then has density 1.

    Args:
        f_NxD, real_MxD: features of the samples and of real images, N >= 1, M > k.
        k: neighbours.

    Raises:
        ValueError: k real images or fewer, or the widths differ.
    """
    balls = radii(real_MxD, k)[:, None]
    num_pairs = 0
    is_covered_M = np.zeros(len(real_MxD), bool)
    for rows, (in_real,) in neighbours.within(real_MxD, f_NxD, (balls,), closed=False):
        num_pairs += np.count_nonzero(in_real)
        is_covered_M[rows] = in_real.any(1)
    return DensityCoverage(num_pairs / (k * len(f_NxD)), float(is_covered_M.mean()))
