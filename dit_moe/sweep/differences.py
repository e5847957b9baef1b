"""How models differ from one of them, seed by seed: what they share with a seed cancels."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from dit_moe.config import ConfigError
from dit_moe.sweep.intervals import COVERAGE
from dit_moe.sweep.table import SEED, SUMMARY, Entry, by_seed, markdown


def differences(entries: Sequence[Entry], against: str) -> str:
    """Mean differences of runs of the same seed, as a Markdown table.

    Behind each mean stands its interval by Student's t for paired samples (`COVERAGE`), where
    there are two seeds or more.

    Args:
      entries: of all runs.
      against: the place on the axes other than the seed that all others are compared with, its
        texts joined by ", ".

    Raises:
      ConfigError: there is no such place, or no run of it is done.
    """
    done = {
        ", ".join(key): _of_seed(group)
        for key, group in by_seed([e for e in entries if e.state == "done"]).items()
    }
    if against not in done:
        raise ConfigError(
            f"against is {against!r}; allowed: {'; '.join(done) or 'nothing, as no run is done'}"
        )
    reference = done.pop(against)
    head = [f"less {against}", "pairs", *SUMMARY]
    lines = [head, ["---"] * len(head)]
    for name, group in done.items():
        shared = sorted(group.keys() & reference.keys())
        cells = [_paired(group, reference, shared, column) for column in SUMMARY]
        lines.append([name, str(len(shared)), *cells])
    return markdown(lines)


def _of_seed(group: Sequence[Entry]) -> Mapping[str, Entry]:
    return {entry.run.choices.get(SEED, ""): entry for entry in group}


def _paired(
    group: Mapping[str, Entry], reference: Mapping[str, Entry], seeds: Sequence[str], column: str
) -> str:
    pairs = [(group[s].row.get(column), reference[s].row.get(column)) for s in seeds]
    found = np.array([a - b for a, b in pairs if a is not None and b is not None])
    if not found.size:
        return ""
    mean = f"{found.mean():+.4f}"
    if found.size == 1:
        return mean
    low, high = stats.ttest_1samp(found, 0).confidence_interval(COVERAGE)
    return f"{mean} [{low:+.4f}, {high:+.4f}]"
