"""The law of a sweep, fitted to its runs, beside the runs that were held out."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dit_moe.config import ConfigError
from dit_moe.config.rules import listing
from dit_moe.sweep.intervals import COVERAGE, FittedLaw, Interval, fit_with_intervals
from dit_moe.sweep.law import FACTORS, Points
from dit_moe.sweep.table import Entry, columns


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A run that was held out."""

    run: str
    told: Interval
    """By the law, for one run."""
    measured: float | None
    """None until the run is done."""

    @property
    def holds(self) -> bool | None:
        """Whether the measured value lies in the interval; None until there is one."""
        return None if self.measured is None else self.told.low <= self.measured <= self.told.high


@dataclasses.dataclass(frozen=True)
class Findings:
    """The fit, and what it is of."""

    loss: str
    """The column that is fitted."""
    fitted: FittedLaw
    runs: int
    """How many it is fitted to."""
    predictions: tuple[Prediction, ...]

    @property
    def formula(self) -> str:
        """The law as a line of text."""
        terms = [
            f"A_{name} ({FACTORS[name]} / {middle:.4g})^-a_{name}"
            for name, middle in self.fitted.law.middle.items()
        ]
        return f"{self.loss} = E + {' + '.join(terms)}"

    @property
    def notes(self) -> list[str]:
        """What a reader of the numbers must know."""
        text = "the runs do not tell how the loss depends on {}: its term is at the edge of the fit"
        return [text.format(name) for name in self.fitted.law.at_the_edge]


def find_law(entries: Sequence[Entry], factors: Sequence[str], loss: str) -> Findings:
    """Fits the law to the runs that are done and not held out.

    Args:
      entries: of all runs.
      factors: names in `law.FACTORS`.
      loss: a column of the table.

    Raises:
      ConfigError: a factor or the column is unknown or without numbers, or the runs cannot tell the
        law.
    """
    if not factors or len({*factors}) < len(factors) or not {*factors} <= FACTORS.keys():
        raise ConfigError(
            f"factors is {','.join(factors)!r}; allowed: {', '.join(FACTORS)}, each once"
        )
    done = [e for e in entries if e.state == "done" and not e.run.heldout]
    known = [name for name in columns(done) if "loss" in name]
    if not done or loss not in known:
        raise ConfigError(
            f"loss is {loss!r}; allowed: {listing(known) or 'none, as no run to fit is done'}"
        )
    for entry in done:
        value = entry.row.get(loss)
        if value is None or value <= 0:
            raise ConfigError(
                f"loss is {loss!r}, which is {value} for run {entry.run.name}; allowed: a loss "
                "that all runs have, above 0"
            )
    loss_N = np.array([entry.row[loss] for entry in done], float)
    values = {name: np.array([e.row[FACTORS[name]] for e in done], float) for name in factors}
    fitted = fit_with_intervals(Points(values, loss_N))
    predictions = [
        Prediction(
            entry.run.name,
            fitted.predict({name: float(entry.row[FACTORS[name]]) for name in factors}),
            entry.row.get(loss),
        )
        for entry in entries
        if entry.run.heldout
    ]
    return Findings(loss, fitted, len(done), tuple(predictions))


def text(findings: Findings) -> str:
    """All of it, for a terminal."""
    lines = [
        f"Law of {findings.runs} runs, with intervals of {COVERAGE:.0%}:",
        f"  {findings.formula}",
        *(f"  {name} = {value}" for name, value in findings.fitted.numbers().items()),
        *(f"  note: {note}" for note in findings.notes),
    ]
    for p in findings.predictions:
        measured = "not measured yet" if p.measured is None else f"measured {p.measured:.4g}"
        inside = {True: ", inside", False: ", outside", None: ""}[p.holds]
        lines.append(f"  {p.run}, held out: told {p.told}, {measured}{inside}")
    return "\n".join(lines)
