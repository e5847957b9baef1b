"""What an .npz of pictures says its labels `arr_1` stand for, as sample.py writes it.

`class_numbers`, integers [K], are the numbers in the data of the labels 0, 1, ...; `class_names`,
text [K], are their names.
"""

import numpy as np

from dit_moe.config import ConfigError
from dit_moe.storage.records import check_plain

MEMBERS = ("class_numbers", "class_names")


def check_integers(what: str, array: np.ndarray) -> None:
    """Raises a ConfigError, a reason without the file's name, unless the numbers fit into int64."""
    if not np.issubdtype(array.dtype, np.integer):
        raise ConfigError(f"{what} are {array.dtype}, but must be integers")
    if array.size and array.max() > np.iinfo(np.int64).max:
        raise ConfigError(f"{what} hold {array.max()}, but must be integers of 64 bits")


def stored_classes(
    label_N: np.ndarray,
    class_numbers: np.ndarray | None = None,
    class_names: np.ndarray | None = None,
) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    """Numbers of the classes in the data, None where the file has none, and their names, if any.

    Args:
      label_N: integers [N], the labels beside them.
      class_numbers: as in the file.
      class_names: as in the file.

    Raises:
      ConfigError: they are no classes of these labels; a reason without the file's name.
    """
    if class_numbers is not None:
        check_integers("class_numbers", class_numbers)
    names = () if class_names is None else _text(class_names)
    for name, array in zip(MEMBERS, (class_numbers, class_names), strict=True):
        if array is None:
            continue
        if array.ndim != 1 or len(np.unique(array)) != len(array):
            raise ConfigError(f"{name} must be a list of different classes")
        if not (label_N.min() >= 0 and label_N.max() < len(array)):
            raise ConfigError(
                f"{name} is of {len(array)} classes, but the labels (arr_1) go from "
                f"{label_N.min()} to {label_N.max()}"
            )
    numbers = None if class_numbers is None else tuple(class_numbers.tolist())
    if numbers is not None and names and len(numbers) != len(names):
        raise ConfigError(
            f"class_numbers is of {len(numbers)} classes, but class_names of {len(names)}"
        )
    return numbers, names


def _text(class_names: np.ndarray) -> tuple[str, ...]:
    if class_names.dtype.kind != "U":
        raise ConfigError(f"class_names is {class_names.dtype}, but must be text")
    try:
        names = tuple(map(str, class_names.ravel().tolist()))
    except ValueError:  # of numbers that are no characters
        raise ConfigError("class_names must be text in UTF-8") from None
    check_plain(names, "class_names")
    return names
