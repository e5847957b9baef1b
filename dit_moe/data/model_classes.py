"""Which classes of its data set a model's labels are."""

from dataclasses import dataclass
from pathlib import Path

from dit_moe.config import Config
from dit_moe.data.classes import read_classes


@dataclass(frozen=True)
class ModelClasses:
    """The classes of a model, in the order of its labels."""

    numbers: tuple[int, ...]
    """In the data set."""
    names: tuple[str, ...]
    """Empty where they are not known, or are the numbers."""


def model_classes(config: Config, workdir: Path) -> ModelClasses:
    """The classes of a run, of which `config.data.classes` may be a choice.

    Args:
      config: of the run.
      workdir: its folder, whose classes.json has the names.

    Raises:
      ConfigError: that file cannot be read.
    """
    numbers = config.data.classes or tuple(range(config.model.num_classes))
    known = read_classes(workdir)
    names = () if known is None else known.names
    if len(names) != len(numbers) or names == tuple(map(str, numbers)):
        names = ()
    return ModelClasses(numbers, names)
