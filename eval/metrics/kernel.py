"""The kernel distance between sets of features (KID on pooled Inception-v3 features)."""

from typing import NamedTuple

import numpy as np


class KernelDistance(NamedTuple):
    """Mean and population standard deviation over subsets."""

    mean: float
    """Squared MMD; unbiased, so it may be slightly negative."""
    std: float
    num_subsets: int
    subset_size: int


def kernel_distance(
    f_NxD: np.ndarray,
    g_MxD: np.ndarray,
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> KernelDistance:
    """The unbiased squared MMD under the kernel (x . y / D + 1)^3, averaged over random subsets.

    Binkowski et al., "Demystifying MMD GANs" (2018), section 4 and eq. 4 with the unbiased
    estimator of Gretton et al. (2012). Subsets are drawn without replacement, first from f, then
    from g, by `numpy.random.RandomState`, which makes them those of torch-fidelity for its default
    seed.

    Args:
        f_NxD, g_MxD: [N, D] and [M, D] real numbers, N, M >= 2.
        num_subsets, subset_size: 100 of 1,000 as published; smaller sets use all they have.
        seed: of the draws.

    Raises:
        ValueError: fewer than 2 rows, or the widths differ.
    """
    size = min(subset_size, len(f_NxD), len(g_MxD))
    if size < 2 or f_NxD.shape[1:] != g_MxD.shape[1:]:
        raise ValueError(
            f"Features have shapes {f_NxD.shape} and {g_MxD.shape}, but must be [N, D] and "
            "[M, D] with N, M >= 2."
        )
    rng = np.random.RandomState(seed)
    distances = []
    for _ in range(num_subsets):
        f_SxD = f_NxD[rng.choice(len(f_NxD), size, replace=False)].astype(np.float64)
        g_SxD = g_MxD[rng.choice(len(g_MxD), size, replace=False)].astype(np.float64)
        distances.append(_squared_mmd(f_SxD, g_SxD))
    return KernelDistance(float(np.mean(distances)), float(np.std(distances)), num_subsets, size)


def _squared_mmd(f_SxD: np.ndarray, g_SxD: np.ndarray) -> float:
    size = len(f_SxD)
    within = 0.0
    for x_SxD in (f_SxD, g_SxD):
        k_SxS = _kernel(x_SxD, x_SxD)
        within += (k_SxS.sum() - np.trace(k_SxS)) / (size * (size - 1))
    return within - 2 * _kernel(f_SxD, g_SxD).mean()


def _kernel(x_SxD: np.ndarray, y_SxD: np.ndarray) -> np.ndarray:
    k_SxS = x_SxD @ y_SxD.T
    k_SxS /= x_SxD.shape[1]
    k_SxS += 1
    return k_SxS * k_SxS * k_SxS
