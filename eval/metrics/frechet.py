"""The Fréchet distance between normal distributions: FID, sFID, FD-DINOv2 by their features."""

import warnings
from typing import NamedTuple

import numpy as np

from ..statistics import Gaussian, SmallSetWarning, fit_gaussian


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """The squared Fréchet (2-Wasserstein) distance between two normal distributions.

    ||m_a - m_b||^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)): eq. 6 of Heusel et al., "GANs Trained by a
    Two Time-Scale Update Rule Converge to a Local Nash Equilibrium" (2017); Dowson and Landau
    (1982). It is FID on pooled Inception-v3 features, sFID on spatial ones (Nash et al.,
    "Generating images with sparse representations", 2021) and FD-DINOv2 on DINOv2's (Stein et al.,
    "Exposing flaws of generative model evaluation metrics", 2023).

    The root is never formed. With C = R R^T, the eigenvalues of the symmetric form
    C_a^(1/2) C_b C_a^(1/2) are the squared singular values of R_a^T R_b, so the trace of the root
    is the sum of those singular values: real and accurate for singular covariances too.

    Args:
        a, b: of the same width D, in any order. See `eval.statistics`.

    Returns:
        The distance, >= 0, in squared units of the features.

    Raises:
        ValueError: the shapes do not fit together, or values are not finite.
    """
    (width,) = a.mean.shape
    for gaussian in (a, b):
        shapes = gaussian.mean.shape, gaussian.covariance.shape
        if shapes != ((width,), (width, width)):
            raise ValueError(
                f"Mean and covariance have shapes {shapes[0]} and {shapes[1]}, "
                f"but must be ({width},) and ({width}, {width})."
            )
        if not (np.isfinite(gaussian.mean).all() and np.isfinite(gaussian.covariance).all()):
            raise ValueError("Mean or covariance holds values that are not finite.")
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return _distance(a.mean - b.mean, traces, a.root, b.root)


def frechet_distance_of_sets(f_NxD: np.ndarray, g_MxD: np.ndarray) -> float:
    """`frechet_distance` of two sets with far fewer features than dimensions, as of one class.

    The centred features over (N - 1)^(1/2) are a root of their covariance, so no D x D array is
    made: the cost is one N x M matrix and its singular values.

    Args:
        f_NxD, g_MxD: [N, D] and [M, D] real numbers, N, M >= 2.

    Raises:
        ValueError: fewer than 2 rows, or the widths differ.
    """
    means, roots = [], []
    for x_NxD in (f_NxD, g_MxD):
        if x_NxD.ndim != 2 or len(x_NxD) < 2 or x_NxD.shape[1] != f_NxD.shape[1]:
            raise ValueError(
                f"Features have shapes {f_NxD.shape} and {g_MxD.shape}, but must be [N, D] and "
                "[M, D] with N, M >= 2."
            )
        x_NxD = np.asarray(x_NxD, np.float64)
        means.append(x_NxD.mean(0))
        roots.append((x_NxD - means[-1]).T / np.sqrt(len(x_NxD) - 1))
    traces = sum(np.sum(root**2) for root in roots)
    return _distance(means[0] - means[1], traces, *roots)


def _distance(delta_D: np.ndarray, traces: float, root_a: np.ndarray, root_b: np.ndarray) -> float:
    trace_of_root = np.linalg.norm(root_a.T @ root_b, ord="nuc")
    distance = float(delta_D @ delta_D + traces - 2 * trace_of_root)
    return max(distance, 0.0)  # rounding may leave -1e-13 between equal sets


class FrechetInfinity(NamedTuple):
    """The line through Fréchet distances over 1 / N."""

    value: float
    """The distance that is expected of infinitely many samples; may be negative by chance."""
    slope: float
    size: list[int]
    """The sizes N of the subsets."""
    distance: list[float]
    """Their distances."""


def frechet_infinity(
    f_NxD: np.ndarray, reference: Gaussian, num_points: int = 15, seed: int = 0
) -> FrechetInfinity:
    """The Fréchet distance without the bias of a finite number of samples.

    Chong and Forsyth, "Effectively Unbiased FID and Inception Score and where to find them"
    (2020): the bias is linear in 1 / N to first order, so the distances of subsets are fitted by
    least squares over 1 / N, and the line's value at 0 is the result. As there, the subsets have
    15 sizes evenly spaced from 5,000 to N and each is drawn anew without replacement; fewer than
    50,000 samples start at N / 10. The samples are given, so their quasi-random draws of the
    generator's noise have no counterpart here. The bias that a finite reference causes stays.

    Args:
        f_NxD: [N, D] features of the samples, N >= 30.
        reference: what they are compared with.
        num_points: the number of sizes.
        seed: of the draws.

    Raises:
        ValueError: fewer than 2 * num_points rows.
    """
    num = len(f_NxD)
    if num < 2 * num_points:
        raise ValueError(f"There are {num} samples, but {2 * num_points} are needed.")
    sizes = np.linspace(min(5000, max(num // 10, 2)), num, num_points).astype(int)
    rng = np.random.default_rng(seed)
    distances = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SmallSetWarning)  # the bias is what is measured
        for size in sizes:
            rows = np.sort(rng.choice(num, size, replace=False))
            distances.append(frechet_distance(fit_gaussian(f_NxD[rows]), reference))
    slope, value = np.polyfit(1 / sizes, distances, 1)
    return FrechetInfinity(float(value), float(slope), sizes.tolist(), distances)
