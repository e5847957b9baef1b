"""What changed in a run's settings as it went on: history.jsonl in its folder, a line a change."""

import json
from collections.abc import Mapping
from typing import Any

import pydantic
from pydantic.dataclasses import dataclass

from dit_moe.config import ConfigError
from dit_moe.config.files import RunConfig, differences, flat
from dit_moe.config.rules import RULES
from dit_moe.storage.files import FilePath, atomic
from dit_moe.storage.records import shown

OVERRIDABLE = (
    "learning_rate",
    "batch_size",
    "accumulation",
    "steps",
    "warmup_steps",
    "schedule",
    "beta1",
    "beta2",
    "weight_decay",
)
"""Fields of `config.train` that `--override_resume` may name: another value fits the state as it
is, and what is told of the state (such as what its average holds of its start) stays true."""

Changes = Mapping[str, tuple[Any, Any]]
"""Fields by dotted name, each with its value of before and the one from now on."""


_FILE = "history.jsonl"


@dataclass(frozen=True, config=RULES)
class Change:
    """A line of the history."""

    step: int
    """Of the checkpoint from which the run went on."""
    changed: dict[str, tuple[Any, Any]]
    """See `Changes`."""


def check_override(names: tuple[str, ...]) -> None:
    """Checks the names of `--override_resume`.

    Raises:
      ConfigError: one of them may not change.
    """
    for name in names:
        if name.removeprefix("train.") not in OVERRIDABLE:
            raise ConfigError(f"override_resume has {name!r}; allowed: {', '.join(OVERRIDABLE)}")


def changes_between(before: RunConfig, after: RunConfig) -> Changes:
    """The fields in which two configs differ; what one of them lacks is None there."""
    old, new = flat(before), flat(after)
    return {field: (old.get(field), new.get(field)) for field in differences(before, after)}


def told(changes: Changes) -> str:
    """The changes for a message."""
    return ", ".join(
        f"{field} (was {shown(old, 40)}, is {shown(new, 40)})"
        for field, (old, new) in changes.items()
    )


def write_change(workdir: FilePath, step: int, changes: Changes) -> None:
    """Adds a line to the run's history, unless it is the last one already.

    A start that was killed before it wrote the new config tells the same once more.

    Args:
      workdir: the run folder.
      step: of the newest checkpoint, from which the run goes on.
      changes: of its settings.

    Raises:
      OSError: it cannot be written; the lines of before are then as they were.
    """
    path = workdir / _FILE
    lines = path.read_text().splitlines() if path.exists() else []
    line = json.dumps({"step": step, "changed": changes})
    if lines[-1:] == [line]:
        return
    with atomic(path) as temporary:
        temporary.write_text("".join(f"{text}\n" for text in [*lines, line]))


def read_changes(workdir: FilePath) -> list[Change]:
    """The run's history; none where no setting ever changed.

    Raises:
      ConfigError: a line is none of `write_change`; the message names it.
    """
    path, kind = workdir / _FILE, pydantic.TypeAdapter(Change)
    lines = path.read_bytes().splitlines() if path.exists() else []
    changes = []
    for number, line in enumerate(lines, start=1):
        try:
            changes.append(kind.validate_json(line))
        except pydantic.ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise ConfigError(f"{path} cannot be read: line {number}: {reason}") from None
    return changes
