"""Differences seed by seed, against numbers by hand."""

import math

import pytest

from dit_moe.config import ConfigError
from dit_moe.sweep.differences import differences
from dit_moe.sweep.record import Run
from dit_moe.sweep.table import Entry
from tests.tiny import tiny


def entry(model: str, seed: int, loss: float | None, state: str = "done") -> Entry:
    run = Run(f"{model}-{seed}", {"seed": str(seed), "model": model}, tiny(None))
    return Entry(run, state, {"validation_loss": loss, "recognised": 0.5})


ENTRIES = [
    *(entry("dense", seed, loss) for seed, loss in enumerate((10.0, 20.0, 40.0))),
    *(entry("sparse", seed, loss) for seed, loss in enumerate((9.0, 18.0, 37.0))),
    entry("once", 1, 19.5),
    entry("unmeasured", 0, None),
    entry("open", 0, 1.0, "open"),
]


def cells(table: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n")]
    return {row[0]: row[1:] for row in rows}


def test_what_a_seed_shares_cancels():
    found = cells(differences(ENTRIES, "dense"))
    assert found.keys() == {"less dense", "---", "sparse", "once", "unmeasured"}
    # Differences -1, -2, -3: deviation 1, and Student's t of 2 degrees at 95% is 2.919986.
    half = 2.919986 / math.sqrt(3)
    assert found["sparse"][:2] == ["3", f"-2.0000 [{-2 - half:+.4f}, {-2 + half:+.4f}]"]
    assert found["once"][:2] == ["1", "-0.5000"]
    assert found["unmeasured"][:2] == ["1", ""]


def test_one_must_be_there():
    with pytest.raises(ConfigError, match=r"against is 'open'; allowed: dense; sparse; once; unm"):
        differences(ENTRIES, "open")
    with pytest.raises(ConfigError, match="allowed: nothing, as no run is done"):
        differences(ENTRIES[-1:], "dense")
