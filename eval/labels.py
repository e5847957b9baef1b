"""The classes of a set's images, and which of them are those of another set."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

_NUMBER = re.compile("[0-9]{1,18}")  # that int64 holds


@dataclass(frozen=True)
class Labels:
    """The class of every image."""

    number: np.ndarray
    """int64 [N]."""
    names: Mapping[int, str] = field(default_factory=dict)
    """The names of all classes by number; empty where they are not known."""
    numbered: bool = True
    """The numbers are the data set's own. False: they are places in the sorted names of what this
    set happens to hold, or names that are other numbers than those; then names alone count."""


def of_folders(names: Sequence[str]) -> Labels:
    """Labels of images in class folders: a folder that is called by a number is that number.

    Args:
        names: of every image's class folder.
    """
    classes, place_N = np.unique(np.asarray(names, object), return_inverse=True)
    if (numbers := _as_numbers(classes)) is not None:
        names_by_number = {number: str(number) for number in numbers}
        return Labels(np.asarray(numbers, np.int64)[place_N], names_by_number)
    return Labels(place_N.astype(np.int64), dict(enumerate(classes)), numbered=False)


def of_places(
    place_N: np.ndarray, names: Sequence[str] = (), numbers: Sequence[int] | None = None
) -> Labels:
    """Labels that are places in a stored list of classes.

    Args:
        place_N: integers [N].
        names: of the classes; none where they are not known.
        numbers: of the classes in the data set; None: their places.
    """
    place_N = np.asarray(place_N, np.int64)
    if not names:
        return Labels(place_N if numbers is None else np.asarray(numbers, np.int64)[place_N])
    numbers = list(range(len(names)) if numbers is None else numbers)
    told = _as_numbers(names)
    names = names if told is None else [str(number) for number in told]
    of_class = numbers if told is None else told
    label_N = np.asarray(of_class, np.int64)[place_N]
    return Labels(label_N, dict(zip(of_class, names, strict=True)), numbered=of_class == numbers)


def shared_classes(a: Labels, b: Labels) -> dict[str, tuple[int, int]] | None:
    """The classes that two sets share: by name where both have names, else by number.

    Returns:
        The number in `a` and that in `b` by name or, without names, by number; None where nothing
        tells which classes are the same.
    """
    present_a, present_b = np.unique(a.number).tolist(), np.unique(b.number).tolist()
    if a.names and b.names:
        of_name = {b.names[number]: number for number in present_b}
        pairs = ((a.names[number], number) for number in present_a)
        return {name: (number, of_name[name]) for name, number in pairs if name in of_name}
    if a.numbered and b.numbered:
        return {str(number): (number, number) for number in present_a if number in {*present_b}}
    return None


def _as_numbers(names: Sequence[str] | np.ndarray) -> list[int] | None:
    """Names that are numbers, all of them and each once."""
    if not all(_NUMBER.fullmatch(name) for name in names):
        return None
    numbers = [int(name) for name in names]
    return numbers if len(set(numbers)) == len(numbers) else None
