"""Distances between sets of features, in float64."""

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from scipy.spatial.distance import cdist


@dataclass(frozen=True)
class Gaussian:
    """The normal distribution that stands for a set of features."""

    mean: np.ndarray
    """float64 [D]."""
    covariance: np.ndarray
    """float64 [D, D], symmetric, positive semi-definite."""


class SmallSetWarning(UserWarning):
    """A set has too few features for a covariance of full rank."""


def fit_gaussian(f_NxD: np.ndarray) -> Gaussian:
    """Mean and unbiased covariance (divisor N - 1, as numpy.cov and the published FID code).

    Args:
        f_NxD: [N, D] real numbers, one row per image, N >= 2.

    Raises:
        ValueError: not two-dimensional, fewer than 2 rows, or not finite.

    Warns:
        SmallSetWarning: N <= D. The covariance is singular, and distances from it are biased up.
    """
    f_NxD = np.asarray(f_NxD, np.float64)
    if f_NxD.ndim != 2 or len(f_NxD) < 2:
        raise ValueError(f"Features have shape {f_NxD.shape}, but must be [N, D] with N >= 2.")
    if not np.isfinite(f_NxD).all():
        raise ValueError("Features hold values that are not finite.")
    num, width = f_NxD.shape
    if num <= width:
        warnings.warn(
            f"The covariance of {num} images in {width} dimensions is singular, so Fréchet "
            "distances from it are biased up.",
            SmallSetWarning,
            stacklevel=2,
        )
    return Gaussian(f_NxD.mean(0), np.cov(f_NxD, rowvar=False).reshape(width, width))


def _square_root(covariance_DxD: np.ndarray) -> np.ndarray:
    """R [D, rank] with R R^T = covariance, from the eigenvalues that are not rounding errors."""
    value_D, vector_DxD = eigh(covariance_DxD)
    kept_D = value_D > value_D.max() * len(value_D) * np.finfo(np.float64).eps
    return vector_DxD[:, kept_D] * np.sqrt(value_D[kept_D])


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """The squared Fréchet (2-Wasserstein) distance between two normal distributions.

    ||m_a - m_b||^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)): eq. 6 of Heusel et al., "GANs Trained by a
    Two Time-Scale Update Rule Converge to a Local Nash Equilibrium" (2017); Dowson and Landau
    (1982). "FID" is this number on Inception-v3 features, and on nothing else.

    The root is never formed. With C = R R^T, the eigenvalues of the symmetric form
    C_a^(1/2) C_b C_a^(1/2) are the squared singular values of R_a^T R_b, so the trace of the root
    is the sum of those singular values: real and accurate for singular covariances too.

    Args:
        a, b: of the same width D, in any order. See `fit_gaussian`.

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
    mean_a_D, mean_b_D = np.asarray(a.mean, np.float64), np.asarray(b.mean, np.float64)
    cov_a_DxD = np.asarray(a.covariance, np.float64)
    cov_b_DxD = np.asarray(b.covariance, np.float64)
    if not all(np.isfinite(x).all() for x in (mean_a_D, mean_b_D, cov_a_DxD, cov_b_DxD)):
        raise ValueError("Mean or covariance holds values that are not finite.")

    root_a, root_b = _square_root(cov_a_DxD), _square_root(cov_b_DxD)
    trace_of_root = np.linalg.norm(root_a.T @ root_b, ord="nuc")
    distance = (
        np.sum((mean_a_D - mean_b_D) ** 2)
        + np.trace(cov_a_DxD)
        + np.trace(cov_b_DxD)
        - 2 * trace_of_root
    )
    return max(float(distance), 0.0)  # rounding may leave -1e-13 between equal sets


def nearest_distances(
    f_NxD: np.ndarray, reference_MxD: np.ndarray, tile: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest reference of every row, by Euclidean distance.

    Differences are formed before they are squared, so an exact copy has distance 0. Memory is
    tile x tile distances, whatever N and M.

    Args:
        f_NxD: [N, D] real numbers.
        reference_MxD: [M, D] real numbers, M >= 1.
        tile: rows of either set that are compared at once.

    Returns:
        distance_N: float64 [N], in the unit of the features.
        index_N: int64 [N], the row of `reference_MxD`; the first of equally near ones.

    Raises:
        ValueError: the widths differ, or there is no reference.
    """
    if len(reference_MxD) == 0:
        raise ValueError("There is no reference to compare with.")
    distance_N = np.full(len(f_NxD), np.inf)
    index_N = np.zeros(len(f_NxD), np.int64)
    for row in range(0, len(f_NxD), tile):
        rows = slice(row, row + tile)
        for start in range(0, len(reference_MxD), tile):
            d_NxM = cdist(f_NxD[rows], reference_MxD[start : start + tile])
            nearest_N = d_NxM.argmin(1)
            d_N = d_NxM[np.arange(len(d_NxM)), nearest_N]
            nearer_N = d_N < distance_N[rows]
            index_N[rows][nearer_N] = start + nearest_N[nearer_N]
            distance_N[rows][nearer_N] = d_N[nearer_N]
    return distance_N, index_N
