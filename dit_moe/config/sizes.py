"""Sizes of pictures: a number for squares, or height and width."""

from typing import Annotated

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

MAX_SIDE = 2**16
"""Far beyond any network; near it, memory alone says no."""


def parse_size(value: object) -> int | tuple[int, int]:
    """The side of a square, or (height, width) of another rectangle.

    Args:
      value: a number, a pair, or their text: "64", "48x64" or "48,64", height first.

    Raises:
      ValueError: it is no size.
    """
    parts = value.replace("x", ",").split(",") if isinstance(value, str) else value
    sides = [_side(part) for part in (parts if isinstance(parts, (list, tuple)) else [parts])]
    if len(sides) not in (1, 2) or not all(0 < side <= MAX_SIDE for side in sides):
        raise ValueError(f"allowed: a side from 1 to {MAX_SIDE}, or height and width such as 48x64")
    return sides[0] if len({*sides}) == 1 else (sides[0], sides[1])


def _side(value: object) -> int:
    """0 for what is no whole number."""
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _validated(value: object) -> int | tuple[int, int]:
    try:
        return parse_size(value)
    except ValueError as error:
        raise PydanticCustomError("size", "{reason}", {"reason": str(error)}) from None


ImageSize = Annotated[int | tuple[int, int], BeforeValidator(_validated)]
"""A field that holds what `parse_size` returns."""


def height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """Both sides of a size that `parse_size` returned."""
    return (size, size) if isinstance(size, int) else size


def size_text(size: int | tuple[int, int]) -> str:
    """What a user writes for it: "64", or "48x64"."""
    return str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"
