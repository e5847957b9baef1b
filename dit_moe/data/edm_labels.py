"""The labels of EDM's `dataset.json`, where folders are no classes."""

from collections.abc import Sequence
from typing import Annotated

import pydantic
from pydantic.dataclasses import dataclass

from dit_moe.data.picture_files import Files, FilesError
from dit_moe.storage.pictures import ImageError

NAME = "dataset.json"
_MAX_CLASSES = 100_000

_Label = Annotated[int, pydantic.Field(ge=0, lt=_MAX_CLASSES)]


@dataclass(frozen=True, config=pydantic.ConfigDict(strict=True))
class _File:
    labels: list[tuple[str, _Label]] | None


def read(files: Files, names: Sequence[str]) -> dict[str, int] | None:
    """The class of every picture of a listing that has a `dataset.json`; None if it says none.

    Args:
      files: reads it.
      names: of the pictures.

    Raises:
      FilesError: it cannot be read, or lacks a picture; the message begins with its name.
    """
    try:
        found = pydantic.TypeAdapter(_File).validate_json(files.read(NAME))
    except (ImageError, pydantic.ValidationError):
        raise _wrong() from None
    if found.labels is None:
        return None
    label = dict(found.labels)
    if absent := next((name for name in names if name not in label), None):
        raise _wrong(f" (it lacks {absent!r})")
    return {name: label[name] for name in names}


def _wrong(detail: str = "") -> FilesError:
    return FilesError(
        f"{NAME} must hold {{'labels': [[file, class], ...]}} for every image, with classes from "
        f"0 to {_MAX_CLASSES - 1:,}, or null labels{detail}"
    )
