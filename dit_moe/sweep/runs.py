"""The runs of a grid, each with a name that follows from its place and a config that fits."""

import fnmatch
import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

from dit_moe.config import Config, ConfigError
from dit_moe.config.files import load_file, override
from dit_moe.config.rules import listing
from dit_moe.storage.records import shown
from dit_moe.sweep.budget import with_budget
from dit_moe.sweep.grid import Grid, Settings, as_override, flat
from dit_moe.sweep.record import Run

MAX_RUNS = 10_000
_MAX_NAME = 200
_BUDGET = "budget."


def expand(grid: Grid) -> list[Run]:
    """All runs of a grid, the first axis slowest.

    Raises:
      ConfigError: a setting does not fit the config, two runs would have one name, or they are too
        many; the message names the run and the field.
    """
    count = math.prod(len(axis.places) for axis in grid.axes)
    if count > MAX_RUNS:
        raise ConfigError(f"grid.axes make {count:,} runs; allowed: up to {MAX_RUNS:,}")
    runs: dict[str, Run] = {}
    bases: dict[str, Config] = {}  # files are run once
    for places in itertools.product(*(axis.places for axis in grid.axes)):
        choices = {a.title: text for a, (text, _) in zip(grid.axes, places, strict=True)}
        name = _name(choices)
        settings = {"config": grid.config} | flat(grid.set)
        for _, more in places:
            settings |= flat(more)
        try:
            config = _configure(settings, bases)
        except ConfigError as error:
            raise ConfigError(f"run {name}: {error}") from None
        if name in runs:
            raise ConfigError(
                f"grid.axes make two runs called {name!r}; allowed: places on an axis that differ "
                "in letters or digits"
            )
        runs[name] = Run(name, choices, config)
    return _hold_out(grid.heldout, list(runs.values()))


def _configure(settings: Settings, bases: dict[str, Config]) -> Config:
    """The config of one run; `bases` are those of files that were read before."""
    spec = settings.pop("config")
    if not isinstance(spec, str):
        raise ConfigError(f"config is {shown(spec)}; allowed: FILE.py or FILE.py:ARGUMENT")
    budgets = {name: settings.pop(name) for name in [*settings] if name.startswith(_BUDGET)}
    if len(budgets) > 1:
        raise ConfigError(f"{' and '.join(budgets)} are given together; allowed: one budget")
    if spec not in bases:
        bases[spec] = load_file(spec)
    config = override(bases[spec], [as_override(*item) for item in settings.items()])
    for name, amount in budgets.items():
        config = with_budget(config, name.removeprefix(_BUDGET), amount)
    return config


def _hold_out(patterns: Sequence[str], runs: list[Run]) -> list[Run]:
    """The runs, of which those with a matching name are held out."""
    names = [run.name for run in runs]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(
                f"grid.heldout has {pattern!r}, which is the name of no run; allowed: patterns of "
                f"{listing(names, 4)}"
            )
    return [
        Run(run.name, run.choices, run.config, any(fnmatch.fnmatch(run.name, p) for p in patterns))
        for run in runs
    ]


def _name(choices: dict[str, Any]) -> str:
    """Such as "seed-0_num-experts-8"; "run" where nothing varies."""
    parts = [f"{_slug(title)}-{_slug(text)}" for title, text in choices.items()]
    name = "_".join(parts) or "run"
    if len(name) > _MAX_NAME:
        raise ConfigError(
            f"a run would be called {name[:40]!r}..., which is longer than {_MAX_NAME} letters; "
            "allowed: shorter names of axes and variants"
        )
    return name


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-") or "-"
