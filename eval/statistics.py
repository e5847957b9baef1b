"""Mean and covariance of features, in float64, in one pass and in flat memory."""

import copy
import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

_BLOCK = 2048  # rows that are centred and multiplied at once


@dataclass(frozen=True)
class Gaussian:
    """The normal distribution that stands for a set of features."""

    mean: np.ndarray
    """float64 [D]."""
    covariance: np.ndarray
    """float64 [D, D], symmetric, positive semi-definite."""

    @functools.cached_property
    def root(self) -> np.ndarray:
        """R, float64 [D, rank], with R R^T = covariance; made once."""
        covariance_DxD = self.covariance
        tolerance = len(covariance_DxD) * np.finfo(np.float64).eps
        try:
            lower_DxD = np.linalg.cholesky(covariance_DxD)
        except np.linalg.LinAlgError:
            pass
        else:
            pivot_D = np.diagonal(lower_DxD) ** 2
            if pivot_D.min() > pivot_D.max() * tolerance:
                return lower_DxD
        # Singular: the eigenvalues that are rounding errors must go, as their roots are not small.
        value_D, vector_DxD = eigh(covariance_DxD, driver="evd")
        kept_D = value_D > value_D.max() * tolerance
        return vector_DxD[:, kept_D] * np.sqrt(value_D[kept_D])


class SmallSetWarning(UserWarning):
    """A set has too few features for a covariance of full rank."""


class GaussianAccumulator:
    """Mean and covariance of rows that arrive in pieces. Memory is flat in the number of rows.

    Every block of 2,048 rows is centred on its own mean and merged into what came before by the
    pairwise update of Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances" (1979), so a mean far from 0 costs no digits. Blocks are cut by
    position, so the result is the same to the bit however the rows are split over calls of `add`.
    """

    def __init__(self, width: int):
        """Starts with no rows of `width` features."""
        self._num = 0  # rows in mean and scatter
        self._mean_D = np.zeros(width)
        self._scatter_DxD = np.zeros((width, width))
        self._pending_BxD = np.empty((_BLOCK, width))
        self._num_pending = 0

    def __len__(self) -> int:
        return self._num + self._num_pending

    @property
    def width(self) -> int:
        """D, the number of features."""
        return len(self._mean_D)

    def add(self, f_NxD: np.ndarray) -> None:
        """Takes in rows, [N, D] real numbers, N >= 0.

        Raises:
            ValueError: not of width D, or not finite; nothing was taken in.
        """
        f_NxD = np.asarray(f_NxD)
        if f_NxD.ndim != 2 or f_NxD.shape[1] != self.width:
            raise ValueError(f"Features have shape {f_NxD.shape}, but must be [N, {self.width}].")
        if not np.isfinite(f_NxD).all():
            raise ValueError("Features hold values that are not finite.")
        while len(f_NxD):
            taken = f_NxD[: _BLOCK - self._num_pending]
            self._pending_BxD[self._num_pending : self._num_pending + len(taken)] = taken
            self._num_pending += len(taken)
            f_NxD = f_NxD[len(taken) :]
            if self._num_pending == _BLOCK:
                self._flush()

    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance (divisor N - 1, as numpy.cov) of the rows so far.

        Raises:
            ValueError: fewer than 2 rows.

        Warns:
            SmallSetWarning: N <= D. The covariance is singular; distances from it are biased up.
        """
        num = len(self)
        if num < 2:
            raise ValueError(f"There are {num} rows of features, but N >= 2 are needed.")
        if num <= self.width:
            warnings.warn(
                f"The covariance of {num} images in {self.width} dimensions is singular, so "
                "Fréchet distances from it are biased up.",
                SmallSetWarning,
                stacklevel=2,
            )
        whole = copy.deepcopy(self)
        whole._flush()
        return Gaussian(whole._mean_D, whole._scatter_DxD / (num - 1))

    def state(self) -> dict[str, np.ndarray]:
        """All that is needed to go on later, to the bit, as arrays for `numpy.savez`."""
        return {
            "num": np.array(self._num),
            "mean": self._mean_D.copy(),
            "scatter": self._scatter_DxD.copy(),
            "pending": self._pending_BxD[: self._num_pending].copy(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> "GaussianAccumulator":
        """The accumulator whose `state` this is.

        Raises:
            ValueError: an array is not of the others' width.
        """
        self = cls(len(state["mean"]))
        shapes = {"mean": (self.width,), "scatter": (self.width, self.width)}
        shapes["pending"] = (len(state["pending"]), self.width)
        for name, shape in shapes.items():
            if state[name].shape != shape:
                raise ValueError(f"{name} has shape {state[name].shape}, but must be {shape}.")
        self._num = int(state["num"])
        self._mean_D[:] = state["mean"]
        self._scatter_DxD[:] = state["scatter"]
        self._num_pending = len(state["pending"])
        self._pending_BxD[: self._num_pending] = state["pending"]
        return self

    def _flush(self) -> None:
        if not self._num_pending:
            return
        block_BxD = self._pending_BxD[: self._num_pending]
        mean_D = block_BxD.mean(0)
        block_BxD -= mean_D  # in its place: the rows are not needed again
        self._merge(len(block_BxD), mean_D, block_BxD.T @ block_BxD)
        self._num_pending = 0

    def _merge(self, num: int, mean_D: np.ndarray, scatter_DxD: np.ndarray) -> None:
        if not num:
            return
        total = self._num + num
        delta_D = mean_D - self._mean_D
        self._scatter_DxD += scatter_DxD
        self._scatter_DxD += np.outer(delta_D * (self._num * num / total), delta_D)
        self._mean_D += delta_D * (num / total)
        self._num = total


def fit_gaussian(f_NxD: np.ndarray) -> Gaussian:
    """Mean and unbiased covariance (divisor N - 1, as numpy.cov and the published FID code).

    Args:
        f_NxD: [N, D] real numbers, one row per image, N >= 2.

    Raises:
        ValueError: not two-dimensional, fewer than 2 rows, or not finite.

    Warns:
        SmallSetWarning: N <= D. The covariance is singular, and distances from it are biased up.
    """
    f_NxD = np.asarray(f_NxD)
    if f_NxD.ndim != 2 or len(f_NxD) < 2:
        raise ValueError(f"Features have shape {f_NxD.shape}, but must be [N, D] with N >= 2.")
    accumulator = GaussianAccumulator(f_NxD.shape[1])
    accumulator.add(f_NxD)
    return accumulator.gaussian()
