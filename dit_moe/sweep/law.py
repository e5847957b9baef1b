"""A law of the loss over parameters and tokens, fitted to the runs of a sweep.

    L = E + sum over factors i of A_i (N_i / M_i)^-a_i

Factors are active parameters, all parameters and tokens of training; M_i is the geometric mean of
factor i over the fitted runs, so that A_i is what it costs there. The form is this project's own:
Hoffmann et al. 2022 ("Training Compute-Optimal Large Language Models", approach 3) have one term
for parameters, and for mixtures of experts no closed form is established. The fit is theirs: the
Huber loss between logarithms, from several starts.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from dit_moe.config import ConfigError
from dit_moe.config.rules import listing

FACTORS = {
    "active": "parameters_active",
    "total": "parameters_total",
    "tokens": "tokens",
}
"""Columns of the table by the factors' names."""

HUBER = 1e-3
"""Differences between logarithms count by their square up to here, and then by their size."""
_LEVEL = 1.1
"""Values closer than this ratio are one level of a factor: a router's columns are no size."""
_TOGETHER = 0.98
"""Factors whose logarithms correlate more than this cannot be told apart."""
_LARGEST_EXPONENT = 3.0
_STARTS = tuple(itertools.product((0.3, 0.7, 0.95), (0.2, 0.8)))
"""Shares of the smallest loss that E begins with, and exponents."""


@dataclass(frozen=True)
class Points:
    """Runs as a fit sees them."""

    factors: Mapping[str, np.ndarray]
    """float64 [N] by name in `FACTORS`."""
    loss: np.ndarray
    """float64 [N], above 0."""

    def rows(self, rows: np.ndarray) -> "Points":
        """Those at these numbers."""
        return Points({name: x_N[rows] for name, x_N in self.factors.items()}, self.loss[rows])


@dataclass(frozen=True)
class Law:
    """The law with its numbers."""

    floor: float
    """E."""
    middle: Mapping[str, float]
    """M_i by factor."""
    size: Mapping[str, float]
    """A_i by factor."""
    exponent: Mapping[str, float]
    """a_i by factor."""

    def __call__(self, factors: Mapping[str, np.ndarray | float]) -> np.ndarray:
        """The loss that the law tells, of the shape of the factors."""
        terms = [
            self.size[name] * (np.asarray(factors[name]) / self.middle[name]) ** -exponent
            for name, exponent in self.exponent.items()
        ]
        return self.floor + np.sum(terms, axis=0)

    def numbers(self) -> dict[str, float]:
        """E, and A and a of every factor, by what they are called."""
        found = {"E": self.floor}
        for name in self.exponent:
            found |= {f"A_{name}": self.size[name], f"a_{name}": self.exponent[name]}
        return found

    @property
    def at_the_edge(self) -> list[str]:
        """Factors of which the runs do not tell how the loss depends on them: a term has vanished,
        or its exponent is at the end of what is searched."""
        least = 1e-4 * (self.floor + sum(self.size.values()))
        return [
            name
            for name, exponent in self.exponent.items()
            if self.size[name] < least or not 0.01 < exponent < 0.99 * _LARGEST_EXPONENT
        ]


def check_points(points: Points) -> None:
    """Checks that the runs can tell the law.

    Raises:
      ConfigError: they are too few, or a factor does not vary, or two vary together.
    """
    names = [*points.factors]
    for name in names:
        number = len(np.unique(levels(points.factors[name])))
        if number < 3:
            raise ConfigError(
                f"factors has {name!r}, of which the runs have {number} level(s); "
                "allowed: factors with 3 or more among the fitted runs (a power law and a floor "
                f"have 3 numbers), so other runs, or --factors without {name}"
            )
    for one, other in itertools.combinations(names, 2):
        logs = [np.log(points.factors[name]) for name in (one, other)]
        if abs(np.corrcoef(np.stack(logs))[0, 1]) > _TOGETHER:
            raise ConfigError(
                f"factors has {one!r} and {other!r}, which vary together in the runs; allowed: "
                "one of them, or runs in which one varies while the other stays"
            )
    settings, unknown = _settings(points), 1 + 2 * len(names)
    if settings <= unknown:
        raise ConfigError(
            f"factors is {listing(names)}, a law of {unknown} numbers, and the runs have "
            f"{settings} different settings; allowed: {unknown + 1} or more, or fewer factors"
        )


def fit(points: Points, starts: Sequence[Law] = ()) -> Law:
    """Fits the law.

    Args:
      points: runs that `check_points` lets pass.
      starts: laws to begin with; none: from a grid of them.

    Returns:
      The law with the least loss among all starts.
    """
    names = [*points.factors]
    middle = {name: float(np.exp(np.log(x_N).mean())) for name, x_N in points.factors.items()}
    log_FxN = np.stack([np.log(points.factors[n] / middle[n]) for n in names])
    log_loss_N = np.log(points.loss)
    small = np.log(1e-9 * points.loss.min())
    high = np.log(10 * points.loss.max())
    count = len(names)
    # Logarithms of E and of the A, then the exponents.
    bounds = (
        np.array([small] * (1 + count) + [0.0] * count),
        np.array([np.log(points.loss.min())] + [high] * count + [_LARGEST_EXPONENT] * count),
    )

    def terms(p: np.ndarray) -> np.ndarray:
        return np.exp(p[1 : 1 + count, None] - p[1 + count :, None] * log_FxN)

    def residuals(p: np.ndarray) -> np.ndarray:
        return np.log(np.exp(p[0]) + terms(p).sum(axis=0)) - log_loss_N

    def jacobian(p: np.ndarray) -> np.ndarray:
        terms_FxN = terms(p)
        share_FxN = terms_FxN / (np.exp(p[0]) + terms_FxN.sum(axis=0))
        floor_N = 1 - share_FxN.sum(axis=0)
        return np.concatenate([floor_N[None], share_FxN, -share_FxN * log_FxN]).T

    firsts = [_packed(law, middle) for law in starts] or _grid(points, count)
    found = [
        least_squares(
            residuals,
            np.clip(first, bounds[0] + 1e-6, bounds[1] - 1e-6),
            jacobian,  # pyright: ignore[reportArgumentType]
            bounds=bounds,
            loss="huber",
            f_scale=HUBER,
            x_scale=1.0,
        )
        for first in firsts
    ]
    p = min(found, key=lambda result: result.cost).x
    return Law(
        floor=float(np.exp(p[0])),
        middle=middle,
        size=dict(zip(names, np.exp(p[1 : 1 + count]).tolist(), strict=True)),
        exponent=dict(zip(names, p[1 + count :].tolist(), strict=True)),
    )


def _grid(points: Points, count: int) -> list[np.ndarray]:
    low, mean = points.loss.min(), points.loss.mean()
    firsts = []
    for share, exponent in _STARTS:
        rest = np.log((mean - share * low) / count)
        firsts.append(np.array([np.log(share * low)] + [rest] * count + [exponent] * count))
    return firsts


def _packed(law: Law, middle: Mapping[str, float]) -> np.ndarray:
    """The numbers of a law about another middle."""
    sizes = [
        np.log(law.size[name]) - exponent * np.log(middle[name] / law.middle[name])
        for name, exponent in law.exponent.items()
    ]
    return np.array([np.log(law.floor), *sizes, *law.exponent.values()])


def levels(x_N: np.ndarray) -> np.ndarray:
    """The number of the level of each value: a new one begins above a gap of `_LEVEL`.

    Args:
      x_N: float64 [N], above 0.

    Returns:
      int [N], from 0 for the smallest.
    """
    order = np.argsort(x_N)
    gaps = np.diff(np.log(x_N[order])) > np.log(_LEVEL)
    level_N = np.empty(len(x_N), int)
    level_N[order] = np.concatenate([[0], np.cumsum(gaps)])
    return level_N


def _settings(points: Points) -> int:
    """How many different combinations of levels there are."""
    return len(np.unique(np.stack([levels(x) for x in points.factors.values()]), axis=1).T)
