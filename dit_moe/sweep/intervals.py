"""How far a fitted law can be trusted: it is fitted again to runs drawn from those there are."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dit_moe.config import ConfigError
from dit_moe.sweep.law import Law, Points, check_points, fit

COVERAGE = 0.9
"""Of all intervals."""
DRAWS = 200


@dataclass(frozen=True)
class Interval:
    """Where a number lies with probability `COVERAGE`, and its value."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


@dataclass(frozen=True)
class FittedLaw:
    """A law with what the bootstrap tells of it."""

    law: Law
    draws: tuple[Law, ...]
    """The same of drawn runs."""
    residuals: np.ndarray
    """float64 [N]: log of measured over told, of the fitted runs, widened by the numbers that were
    fitted."""

    def numbers(self) -> dict[str, Interval]:
        """E, A and a with their intervals."""
        drawn = [law.numbers() for law in self.draws]
        return {
            name: _interval(value, np.array([numbers[name] for numbers in drawn]))
            for name, value in self.law.numbers().items()
        }

    def predict(self, factors: Mapping[str, float]) -> Interval:
        """The loss of one new run, its own noise included."""
        rng = np.random.default_rng(1)
        noise = rng.choice(self.residuals, len(self.draws))
        drawn = np.array([float(law(factors)) for law in self.draws]) * np.exp(noise)
        return _interval(float(self.law(factors)), drawn)


def fit_with_intervals(points: Points, draws: int = DRAWS) -> FittedLaw:
    """Fits the law to all runs, and again to as many drawn from them with replacement.

    Draws that could not tell the law are drawn anew, so that few settings with many seeds are
    better than their number.

    Raises:
      ConfigError: see `check_points`; or nearly no draw could tell the law.
    """
    check_points(points)
    law = fit(points)
    rng, drawn = np.random.default_rng(0), []
    count = len(points.loss)
    for _ in range(20 * draws):
        some = points.rows(rng.integers(count, size=count))
        try:
            check_points(some)
        except ConfigError:
            continue
        drawn.append(fit(some, [law]))
        if len(drawn) == draws:
            break
    else:
        raise ConfigError(
            f"factors is {', '.join(points.factors)}, and {count} runs are too few for intervals: "
            "most of what is drawn from them cannot tell the law; allowed: more seeds or settings"
        )
    residual_N = np.log(points.loss / law(points.factors))
    free = count - len(law.numbers())
    return FittedLaw(law, tuple(drawn), residual_N * np.sqrt(count / free))


def _interval(value: float, drawn_D: np.ndarray) -> Interval:
    low, high = np.quantile(drawn_D, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Interval(value, float(low), float(high))
