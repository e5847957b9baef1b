"""How a run came to be: what it started from, and which of its settings changed."""

from dataclasses import dataclass
from pathlib import Path

from dit_moe.runs.history import read_changes
from dit_moe.storage.records import shown
from dit_moe.training.origin import read_origin


@dataclass(frozen=True)
class History:
    """What the folder notes."""

    origin: str
    """A sentence, or nothing."""
    changes: tuple[tuple[str, str, str, str], ...]
    """Step, field of the config, its value of before and the one from then on."""


def told_history(workdir: Path) -> History:
    """The history of a run.

    Raises:
      ConfigError: a file of it cannot be read.
    """
    changes = tuple(
        (f"{change.step:,}", field, shown(old), shown(new))
        for change in read_changes(workdir)
        for field, (old, new) in change.changed.items()
    )
    return History(_origin(workdir), changes)


def _origin(workdir: Path) -> str:
    origin = read_origin(workdir)
    if origin is None:
        return ""
    pairs = ", ".join(f"{new} from {old}" for new, old in origin.init_classes.items())
    classes = f", with the classes {pairs}" if pairs else ""
    return f"Started from the parameters of {origin.init_from} at step {origin.step:,}{classes}."
