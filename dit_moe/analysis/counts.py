"""Counts of who was chosen where, when and for which class."""

import math
from collections.abc import Sequence

import numpy as np

from dit_moe.analysis.decisions import Decisions
from dit_moe.config import ConfigError


class Counts:
    """Sums of decisions over what the network was shown.

    N images that have a class are told apart, so that chance can be estimated. Images with the
    null label are counted beside them. Every image comes at the same V times.

    Args:
      label_N: class of every image.
      classes: the Y classes that there are.
      bin_V: [V] the part of the time range that each of the times is in.
      shape: (L, B, H, W, E, D): layers, equal parts of the time range, rows and columns of an
        image's S tokens, experts and features of a token.
    """

    def __init__(
        self,
        label_N: np.ndarray,
        classes: Sequence[int],
        bin_V: np.ndarray,
        shape: tuple[int, int, int, int, int, int],
    ):
        n, (layers, bins, *grid, e, d) = len(label_N), shape
        self.grid: tuple[int, int] = (grid[0], grid[1])
        """Rows and columns of tokens."""
        s = math.prod(grid)
        self.bin_V = bin_V
        self.classes = tuple(classes)
        self.class_N = np.searchsorted(np.asarray(classes), label_N)
        """[N]: the place of an image's class among the classes, which ascend."""
        self.position_NxSxLxE = np.zeros((n, s, layers, e), np.uint16)
        self.time_NxVxLxE = np.zeros((n, len(bin_V), layers, e), np.uint16)
        self.position_time_LxBxSxE = np.zeros((layers, bins, s, e), np.int64)
        self.null_LxBxE = np.zeros((layers, bins, e), np.int64)
        self.coactivation_LxExE = np.zeros((layers - 1, e, e), np.int64)
        """Tokens with expert i in layer l and expert j in the next."""
        self.token_sum_LxYxD = np.zeros((layers, len(classes), d), np.float64)
        """Sum over images and times of the mean tokens of each class."""
        self.visits_B = np.zeros(bins, np.int64)
        self.null_visits = 0
        self._paths: list[np.ndarray] = []

    def add(self, seen: Decisions, image_N: np.ndarray, time_N: np.ndarray) -> None:
        """Counts decisions about n inputs.

        Args:
          seen: of the inputs, as NumPy arrays.
          image_N: [n] number of each input's image; -1 for the null label.
          time_N: [n] number of its time, from 0 to V - 1.

        Raises:
          ConfigError: tokens are not finite, so that their experts mean nothing.
        """
        if not np.isfinite(seen.mean_token).all():
            raise ConfigError(
                "the network's tokens are not finite; allowed: a model with finite parameters, and "
                "guidance_scale near 1"
            )
        null_N = image_N < 0
        # Tokens of an image together: [n, S, L, E].
        chosen_NxSxLxE = np.asarray(seen.chosen).transpose(1, 2, 0, 3)
        bin_N = self.bin_V[time_N]
        for place, chosen_SxLxE in zip(bin_N[null_N], chosen_NxSxLxE[null_N], strict=True):
            self.null_LxBxE[:, place] += chosen_SxLxE.sum(axis=0)
        self.null_visits += int(null_N.sum())
        image_N, time_N, bin_N, chosen_NxSxLxE = (
            array[~null_N] for array in (image_N, time_N, bin_N, chosen_NxSxLxE)
        )
        for image, place, chosen_SxLxE in zip(image_N, bin_N, chosen_NxSxLxE, strict=True):
            self.position_NxSxLxE[image] += chosen_SxLxE
            self.position_time_LxBxSxE[:, place] += chosen_SxLxE.swapaxes(0, 1)
        self.time_NxVxLxE[image_N, time_N] = chosen_NxSxLxE.sum(axis=1)
        flat_LxTxE = chosen_NxSxLxE.reshape(-1, *chosen_NxSxLxE.shape[2:]).swapaxes(0, 1)
        flat_LxTxE = flat_LxTxE.astype(np.float32)  # exact, and a matrix product
        both = np.matmul(flat_LxTxE[:-1].swapaxes(1, 2), flat_LxTxE[1:])
        self.coactivation_LxExE += np.rint(both).astype(np.int64)
        mean_token_NxLxD = np.asarray(seen.mean_token)[:, ~null_N].swapaxes(0, 1)
        np.add.at(self.token_sum_LxYxD.swapaxes(0, 1), self.class_N[image_N], mean_token_NxLxD)
        np.add.at(self.visits_B, bin_N, 1)
        first_LxT = np.asarray(seen.first)[:, ~null_N].reshape(len(flat_LxTxE), -1)
        self._paths.append(np.ascontiguousarray(first_LxT.T, np.uint16))

    def by_class(self) -> np.ndarray:
        """Counts of each class: [L, Y, E]."""
        count_YxLxE = np.zeros((len(self.classes), *self.time_NxVxLxE.shape[2:]), np.int64)
        np.add.at(count_YxLxE, self.class_N, self.time_NxVxLxE.sum(axis=1, dtype=np.int64))
        return count_YxLxE.swapaxes(0, 1)

    def mean_tokens(self) -> np.ndarray:
        """The mean token of each class, over its images and all times: [L, Y, D]."""
        visits_N = self.visits_B.sum() / len(self.class_N)
        images_Y = np.bincount(self.class_N, minlength=len(self.classes))
        return self.token_sum_LxYxD / (visits_N * images_Y)[:, None]

    def paths(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct paths [P, L] of first experts through the layers, and their counts [P]."""
        path_TxL = np.concatenate(self._paths)
        # Rows as single values: sorting them is much faster than by columns.
        row_T = path_TxL.view(np.dtype((np.void, path_TxL.itemsize * path_TxL.shape[1]))).ravel()
        _, first_P, count_P = np.unique(row_T, return_index=True, return_counts=True)
        return path_TxL[first_P], count_P
