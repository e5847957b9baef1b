"""JSON files that anyone may have edited, and validated dataclasses as such files."""

import json
import math
from typing import Any, TypeVar

import pydantic

from dit_moe.storage.errors import ConfigError
from dit_moe.storage.files import FilePath, atomic

T = TypeVar("T")

_MOST_LEVELS = 50
_TOO_DEEP = f"it is nested deeper than {_MOST_LEVELS} levels"


def read_json(path: FilePath) -> Any:
    """The plain values of a JSON file.

    Raises:
      ConfigError: it is not JSON in UTF-8, has one name twice in an object, or `check_plain`
        refuses its values.
      FileNotFoundError: there is no such file.
    """
    try:
        # Some editors begin a file with a mark of its encoding.
        text = path.read_bytes().decode("utf-8-sig")
        values = json.loads(text, object_pairs_hook=_unique, parse_int=_integer)
    except RecursionError:
        raise ConfigError(f"{path} is not valid JSON: {_TOO_DEEP}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    try:
        check_plain(values)
    except ConfigError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{shown(twice)} is given twice in one object")
    return values


def _integer(digits: str) -> int:
    # More digits than Python converts, or than anyone wants to read.
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise ValueError(f"it holds the number {digits[:20]}..., which is beyond 64 bits")
    return int(digits)


def check_format(path: FilePath, found: object, known: int, older: str) -> None:
    """Checks the format number of what a file describes.

    Args:
      path: the file.
      found: its number, or whatever stands there.
      known: the number that can be read.
      older: what to do about a lower number, as the end of a sentence.

    Raises:
      ConfigError: it is another number, or none.
    """
    if type(found) is int and found == known:
        return
    is_older = type(found) is int and 1 <= found < known
    remedy = older if is_older else "read it with a newer dit_moe"
    raise ConfigError(
        f"{path} is of format {shown(found)}, and this version of dit_moe reads format {known} "
        f"alone: {remedy}"
    )


def check_plain(value: Any, name: str = "", level: int = 0) -> None:
    """Checks plain values for what no JSON file of this package holds.

    Args:
      value: of dictionaries, lists, texts and numbers.
      name: of the value, for the message.
      level: of other values around it.

    Raises:
      ConfigError: a number is not finite, a text has half a character (as file names that are not
        UTF-8 do) or the character 0, or the values are nested deeper than 50 levels.
    """
    if level > _MOST_LEVELS:
        raise ConfigError(_TOO_DEEP)
    match value:
        case dict():
            for key, part in value.items():
                _check_text(str(key), "a name")
                check_plain(part, f"{name}.{key}".lstrip("."), level + 1)
        case list() | tuple():
            for index, part in enumerate(value):
                check_plain(part, f"{name}.{index}".lstrip("."), level + 1)
        case float() if not math.isfinite(value):
            raise ConfigError(f"{name or 'it'} is {value}; allowed: a finite number")
        case str():
            _check_text(value, name or "it")


def _check_text(text: str, name: str) -> None:
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ConfigError(
            f"{name} is {shown(text)}; allowed: text in UTF-8 without the character 0"
        )


def shown(value: object, limit: int = 200) -> str:
    """The value as Python writes it, cut after `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def write_record(path: FilePath, record: Any) -> None:
    """Writes a pydantic dataclass; the file is whole or absent.

    Raises:
      ConfigError: a text in it, such as a path, is no UTF-8.
      OSError: it cannot be written.
    """
    adapter = pydantic.TypeAdapter(type(record))
    check_plain(adapter.dump_python(record))
    with atomic(path) as temporary:
        temporary.write_bytes(adapter.dump_json(record, indent=2) + b"\n")


def read_record(path: FilePath, kind: type[T]) -> T:
    """Reads what `write_record` wrote.

    Raises:
      ConfigError: it is not a `kind`; the message names the first wrong field.
      FileNotFoundError: there is no such file.
    """
    values = read_json(path)
    try:
        return pydantic.TypeAdapter(kind).validate_python(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(f"{path} cannot be read: {place}: {first['msg']}") from None
