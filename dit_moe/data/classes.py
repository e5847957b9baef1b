"""Which classes of the data a model's labels are, and which of them have images to learn from."""

from collections.abc import Sequence

import numpy as np
from pydantic.dataclasses import dataclass

from dit_moe.config import ConfigError, DataConfig, ModelConfig
from dit_moe.config.rules import RULES, listing, require
from dit_moe.data.sources import Source
from dit_moe.devices import hosts
from dit_moe.storage.files import FilePath
from dit_moe.storage.records import read_record, write_record

_FILE = "classes.json"


@dataclass(frozen=True, config=RULES)
class Classes:
    """The classes of the training data. Kept in a run folder as classes.json."""

    names: tuple[str, ...]
    """Names of the model's class 0, 1, ..., as far as the data name them."""
    images: tuple[int, ...]
    """How many there are of class 0, 1, ..."""

    def __post_init__(self) -> None:
        require(
            any(count > 0 for count in self.images),
            "images has no class with an image; allowed: one class with images, or more",
        )

    def learnt(self) -> tuple[int, ...]:
        """The classes that have images."""
        return tuple(label for label, count in enumerate(self.images) if count > 0)


def count_classes(sources: Sequence[Source]) -> Classes:
    """The classes of all sources together, which have the same ones."""
    label_N = np.concatenate([source.label for source in sources])
    names = sources[0].classes
    return Classes(names, tuple(np.bincount(label_N, minlength=len(names)).tolist()))


def evenly_spaced(classes: Sequence[int], most: int) -> list[int]:
    """At most so many of the classes, the first and the last among them."""
    places = np.linspace(0, len(classes) - 1, min(len(classes), most)).astype(int)
    return [classes[place] for place in places]


def write_classes(workdir: FilePath, classes: Classes | None) -> None:
    """Keeps them with the run."""
    path = workdir / _FILE
    if classes is None:
        path.unlink(missing_ok=True)
        return
    write_record(path, classes)


def read_classes(workdir: FilePath) -> Classes | None:
    """Those of a run; None for one that was converted, or made before they were kept.

    Raises:
      ConfigError: the file cannot be read.
    """
    path = workdir / _FILE
    return read_record(path, Classes) if path.exists() else None


@dataclass(frozen=True, config=RULES)
class ModelClasses:
    """The classes of a model, in the order of its labels."""

    numbers: tuple[int, ...]
    """In the data set."""
    names: tuple[str, ...]
    """Empty where they are not known, or are the numbers."""

    def titles(self, label_N: np.ndarray) -> list[str]:
        """What to call the class of each label [N]: its name if it alone has it, else the label."""
        own = {label: name for label, name in enumerate(self.names) if self.names.count(name) == 1}
        return [own.get(label, str(label)) for label in label_N.tolist()]

    def labels(self, asked: Sequence[str]) -> list[int]:
        """The labels of classes that are asked for by name or by label.

        A number is a label, even where another class is called so, which is said then.

        Raises:
          ConfigError: a text is neither.
        """
        return [self._label(text) for text in asked]

    def _label(self, text: str) -> int:
        places = [label for label, name in enumerate(self.names) if name == text]
        try:
            label = int(text)
        except ValueError:
            if len(places) == 1:
                return places[0]
            known = f", or names: {listing(self.names)}" if self.names else " (no names are known)"
            raise ConfigError(
                f"classes has {text!r}; allowed: numbers with commas, such as 0,1,2{known}"
            ) from None
        if places and label not in places and 0 <= label < len(self.names):
            hosts.say(
                f"Class {label} is the label {label}, called {self.names[label]!r}; the class "
                f"called {text!r} is {places[0]}."
            )
        return label


def model_classes(data: DataConfig, model: ModelConfig, workdir: FilePath) -> ModelClasses:
    """The classes of a run, of which `data.classes` may be a choice.

    Args:
      data: of the run.
      model: of the run.
      workdir: its folder, whose classes.json has the names.

    Raises:
      ConfigError: that file cannot be read.
    """
    known = read_classes(workdir)
    return named_classes(data, model, () if known is None else known.names)


def named_classes(data: DataConfig, model: ModelConfig, names: tuple[str, ...]) -> ModelClasses:
    """The classes of a run whose data name them so."""
    numbers = data.classes or tuple(range(model.num_classes))
    if len(names) != len(numbers) or names == tuple(map(str, numbers)):
        names = ()
    return ModelClasses(numbers, names)
