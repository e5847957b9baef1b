"""Validated dataclasses as JSON files."""

from typing import Any, TypeVar

import pydantic

from dit_moe.config import ConfigError
from dit_moe.files import FilePath, atomic

T = TypeVar("T")


def write_record(path: FilePath, record: Any) -> None:
    """Writes a pydantic dataclass; the file is whole or absent."""
    with atomic(path) as temporary:
        text = pydantic.TypeAdapter(type(record)).dump_json(record, indent=2)
        temporary.write_bytes(text + b"\n")


def read_record(path: FilePath, kind: type[T]) -> T:
    """Reads what `write_record` wrote.

    Raises:
      ConfigError: it is not a `kind`; the message names the first wrong field.
      FileNotFoundError: there is no such file.
    """
    try:
        return pydantic.TypeAdapter(kind).validate_json(path.read_bytes())
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(f"{path} cannot be read: {place}: {first['msg']}") from None
