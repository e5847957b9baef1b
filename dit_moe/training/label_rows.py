"""The label table of a run that starts from a model of other classes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.config import ConfigError
from dit_moe.config.rules import listing
from dit_moe.data.classes import ModelClasses

LABEL_TABLE = "label.table"


class LabelRows(NamedTuple):
    """Where the row of each class comes from; that of no class is always kept."""

    rows: tuple[int | None, ...]
    """The old class of each new one; None: the mean of the old classes."""
    learnt: tuple[int, ...]
    """The old classes that the mean is of."""

    def take(self, table_YxD: jax.Array) -> jax.Array:
        """The new table [Y' + 1, D] of an old one [Y + 1, D], float32; pure."""
        mean_D = table_YxD[np.asarray(self.learnt)].mean(axis=0, keepdims=True)
        null = len(table_YxD) - 1
        rows = [null + 1 if row is None else row for row in self.rows]
        return jnp.concatenate([table_YxD, mean_D])[np.asarray([*rows, null])]


def find_rows(
    old: ModelClasses, learnt: Sequence[int], new: ModelClasses, chosen: Mapping[str, str]
) -> LabelRows:
    """The rows of each new class: chosen, else kept, else the mean.

    A class is kept that both models have: by name where both have names, by its number in the data
    where neither has. Where one of them alone has names, all are kept in order if they are as many.

    Args:
      old: classes of the model that there is.
      learnt: those of its labels that had images.
      new: of the run.
      chosen: for classes of the run, which old one each starts from; both are names, or numbers in
        the data.

    Raises:
      ConfigError: there is no such class, or one is chosen for twice.
    """
    rows = _kept(old, new)
    given: dict[int, str] = {}
    for ours, theirs in chosen.items():
        label = _find(ours, new, "the run")
        if label in given:
            raise ConfigError(
                f"init_classes has {given[label]!r} and {ours!r}, which are one class; allowed: "
                "each once"
            )
        given[label] = ours
        rows[label] = _find(theirs, old, "the model to start from")
    labels = range(len(old.numbers))
    return LabelRows(tuple(rows), tuple(sorted(set(labels) & set(learnt))) or tuple(labels))


def _kept(old: ModelClasses, new: ModelClasses) -> list[int | None]:
    if bool(old.names) != bool(new.names):
        count = len(new.numbers)
        return [*range(count)] if count == len(old.numbers) else [None] * count
    mine, theirs = (new.names, old.names) if new.names else (new.numbers, old.numbers)
    if mine == theirs:
        return [*range(len(mine))]
    # A name that several classes have tells none of them.
    ours_of, theirs_of = Counter(mine), Counter(theirs)
    label_of = {name: label for label, name in enumerate(theirs) if theirs_of[name] == 1}
    return [label_of.get(name) if ours_of[name] == 1 else None for name in mine]


def _find(text: str, classes: ModelClasses, whose: str) -> int:
    """The label of a class by its name, or by its number where no name looks like one."""
    known = classes.names
    if not any(name.isdecimal() for name in known) and text.isdecimal():
        known = tuple(map(str, classes.numbers))
    if known.count(text) != 1:
        which = "the name of several classes" if text in known else "no class"
        raise ConfigError(
            f"init_classes has {text!r}, which is {which} of {whose}; allowed: "
            f"{listing(classes.names or classes.numbers)}"
        )
    return known.index(text)


def sentence(found: LabelRows, old: ModelClasses, new: ModelClasses) -> str | None:
    """Where the rows come from; None where all classes are those of before."""
    before, now = old.names or old.numbers, new.names or new.numbers
    pairs = list(zip(now, found.rows, strict=True))
    kept = [name for name, row in pairs if row is not None and before[row] == name]
    moved = [f"{name} from {before[r]}" for name, r in pairs if r is not None and before[r] != name]
    fresh = [name for name, row in pairs if row is None]
    parts = [f"{listing(kept)} kept"] if kept else []
    parts += [listing(moved)] if moved else []
    if fresh:
        parts.append(f"{listing(fresh)} from the mean of {len(found.learnt):,} classes")
    return None if before == now == tuple(kept) else f"Label embeddings: {'; '.join(parts)}."
