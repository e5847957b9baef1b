"""How a run came to be: what it started from, and which of its settings changed."""

from dataclasses import dataclass
from pathlib import Path

from dit_moe.runs.history import read_changes
from dit_moe.runs.teacher import read_teacher
from dit_moe.storage.records import shown
from dit_moe.training.origin import read_origin


@dataclass(frozen=True)
class History:
    """What the folder notes."""

    origin: str
    """Sentences on the model that it started from and on its teacher, or nothing."""
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
    return History(" ".join(filter(None, (_origin(workdir), _teacher(workdir)))), changes)


def _origin(workdir: Path) -> str:
    origin = read_origin(workdir)
    if origin is None:
        return ""
    pairs = ", ".join(f"{new} from {old}" for new, old in origin.init_classes.items())
    classes = f", with the classes {pairs}" if pairs else ""
    layers = ", ".join(map(str, origin.init_layers))
    blocks = f", from its blocks {layers}" if layers else ""
    start = f"Started from the parameters of {origin.init_from} at step {origin.step:,}"
    return f"{start}{classes}{blocks}."


def _teacher(workdir: Path) -> str:
    teacher = read_teacher(workdir)
    return "" if teacher is None else f"Learnt from {teacher.teacher} at step {teacher.step:,}."
