"""How a run's samples were judged while it trained: judged.jsonl in its folder, a line a step."""

import json
from collections.abc import Collection, Sequence
from typing import Any

import pydantic
from pydantic.dataclasses import dataclass

from dit_moe.config import ConfigError
from dit_moe.config.rules import RULES, NonNegativeInt
from dit_moe.storage.files import FilePath, atomic

_FILE = "judged.jsonl"


@dataclass(frozen=True, config=RULES)
class Judgement:
    """What samples of one step's averaged parameters are worth."""

    step: NonNegativeInt
    values: dict[str, float]
    """By their column in metrics.csv; the first decides which checkpoint is the best."""
    highest: bool
    """Whether the highest of the first values is the best, or the lowest."""
    judged_by: dict[str, Any]
    """All that the values depend on beside the weights; those of others say nothing of these."""

    @property
    def first(self) -> tuple[str, float]:
        """Column and value that decide."""
        return next(iter(self.values.items()))


def read_judgements(workdir: FilePath) -> list[Judgement]:
    """The judgements of a run, in the order of its steps.

    Raises:
      ConfigError: a line is none; the message names it.
    """
    path, kind = workdir / _FILE, pydantic.TypeAdapter(Judgement)
    judgements = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else [], 1):
        try:
            judgements.append(kind.validate_json(line))
        except pydantic.ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise ConfigError(
                f"{path} cannot be read: line {number}: {reason}; allowed: the line as it was, or "
                "the file removed, which forgets how checkpoints were judged"
            ) from None
    return judgements


def write_judgement(workdir: FilePath, judgement: Judgement) -> None:
    """Adds a judgement to those of earlier steps; later ones are about to be done again.

    Raises:
      OSError: it cannot be written; the file is then as it was.
    """
    kept = [known for known in read_judgements(workdir) if known.step < judgement.step]
    dump = pydantic.TypeAdapter(Judgement).dump_python
    lines = [json.dumps(dump(known)) for known in [*kept, judgement]]
    with atomic(workdir / _FILE) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines))


def best(judgements: Sequence[Judgement], steps: Collection[int]) -> Judgement | None:
    """The best of those of these steps, among those that were judged as the last one of all was;
    None if there is none. Of equal ones it is the first."""
    alike = [known for known in judgements if known.judged_by == judgements[-1].judged_by]
    there = [known for known in alike if known.step in steps]
    if not there:
        return None
    choose = max if there[0].highest else min
    return choose(there, key=lambda known: known.first[1])
