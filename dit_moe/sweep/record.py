"""What a sweep's folder says of its runs: sweep.json, written before any of them begins."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from dit_moe.config import Config, ConfigError
from dit_moe.config.files import differences, from_dict, to_dict
from dit_moe.config.rules import listing
from dit_moe.storage.files import atomic
from dit_moe.storage.records import check_format, read_json

FORMAT = 1
_FILE = "sweep.json"


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep."""

    name: str
    """A folder's name."""
    choices: dict[str, str]
    """The text of its place on every axis, by the axis."""
    config: Config
    heldout: bool = False
    """The law is not fitted to it, but predicts it."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """All runs, and how they are judged."""

    runs: tuple[Run, ...]
    judge: int | None = None
    """Samples of each run that are judged; None: none."""


def write_sweep(folder: Path, sweep: Sweep) -> None:
    """Writes sweep.json. Runs may come and go, but what one of them is stays.

    Raises:
      ConfigError: a run of that name is another there, or they are judged otherwise.
      OSError: it cannot be written.
    """
    check_sweep(folder, sweep)
    values = {"format": FORMAT, "judge": sweep.judge, "runs": [_plain(r) for r in sweep.runs]}
    with atomic(folder / _FILE) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n")


def read_sweep(folder: Path) -> Sweep:
    """Reads what `write_sweep` wrote.

    Raises:
      ConfigError: it is missing, damaged or of another format.
    """
    path = folder / _FILE
    try:
        values = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"output is {str(folder)!r}, which has no {_FILE}; allowed: a folder that was begun "
            "with --grid"
        ) from None
    found = values.get("format") if isinstance(values, dict) else None
    check_format(path, found, FORMAT, "begin a new sweep")
    try:
        runs = tuple(
            Run(
                name=str(run["name"]),
                choices={str(axis): str(text) for axis, text in run["choices"].items()},
                config=from_dict(run["config"]),
                heldout=bool(run["heldout"]),
            )
            for run in values["runs"]
        )
        judge = values["judge"]
        if any(Path(run.name).name != run.name for run in runs):
            raise ValueError("a run has no plain name")
        if judge is not None and (type(judge) is not int or judge < 1):
            raise ValueError("judge is no count")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is damaged ({type(error).__name__}: {error}); remove it, and give --grid"
        ) from None
    return Sweep(runs, judge)


def _plain(run: Run) -> dict[str, Any]:
    return {**dataclasses.asdict(run), "config": to_dict(run.config)}


def check_sweep(folder: Path, now: Sweep) -> None:
    """Checks that what a folder holds already, if anything, is of these runs.

    Raises:
      ConfigError: a run of that name is another there, or they are judged otherwise.
    """
    if not (folder / _FILE).exists():
        return
    before = read_sweep(folder)
    if before.judge != now.judge:
        raise ConfigError(
            f"grid.judge is {now.judge} and was {before.judge} in {str(folder)!r}; allowed: the "
            "same, or another --output"
        )
    known = {run.name: run for run in before.runs}
    for run in now.runs:
        if run.name not in known:
            continue
        fields = differences(known[run.name].config, run.config)
        if fields:
            raise ConfigError(
                f"output {str(folder)!r} has a run {run.name} with another config; it differs in "
                f"{listing(fields)}: use the same grid or another --output"
            )
