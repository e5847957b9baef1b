"""Which classes of its data set a model's labels are."""

import json
from dataclasses import dataclass
from pathlib import Path

from dit_moe.config import Config, ConfigError
from dit_moe.data import patches
from dit_moe.data.prepared import Card, read_card


@dataclass(frozen=True)
class ModelClasses:
    """The classes of a model, in the order of its labels."""

    numbers: tuple[int, ...]
    """In the data set."""
    names: tuple[str, ...]
    """Empty where they are not known."""


def model_classes(config: Config, workdir: Path) -> ModelClasses:
    """The classes of a run, of which `config.data.classes` may be a choice.

    Names are those of the data set, if it is still where the run learnt from it.

    Args:
      config: of the run.
      workdir: its folder, whose data.json tells whether the data are still the same.
    """
    numbers = config.data.classes or tuple(range(config.model.num_classes))
    match config.data.source:
        case "digits":
            names: tuple[str, ...] = ()  # the numbers
        case "patches":
            names = patches.CLASSES
        case "prepared":
            names = _prepared_names(config, workdir)
    if max(numbers) >= len(names):
        return ModelClasses(numbers, ())
    return ModelClasses(numbers, tuple(names[number] for number in numbers))


def _prepared_names(config: Config, workdir: Path) -> tuple[str, ...]:
    try:
        digests = json.loads((workdir / "data.json").read_text())
        cards: list[Card] = [read_card(Path(folder)) for folder in config.data.path]
    except (ConfigError, OSError, ValueError, RecursionError):
        return ()
    return cards[0].classes if [card.digest for card in cards] == digests else ()
