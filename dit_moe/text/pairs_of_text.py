"""Pairs of texts in files of two columns: a source and its target, with a tab between them."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from dit_moe.config import ConfigError
from dit_moe.storage.records import shown

_COLUMNS = "a source, one tab and a target, neither of them empty"


class TextPair(NamedTuple):
    """One example."""

    source: str
    target: str


def read_pairs(path: Path) -> list[TextPair]:
    """The pairs of a file in UTF-8, one a line; lines may end as on Windows.

    Raises:
      ConfigError: there is no such file, it is empty, or a line is no pair; the message tells its
        number.
    """
    pairs = []
    for number, line in enumerate(read_lines(path), start=1):
        columns = line.split("\t")
        if len(columns) != 2 or not all(column.strip() for column in columns):
            raise ConfigError(
                f"{path} has {len(columns)} columns in line {number}; allowed: {_COLUMNS}"
                if len(columns) != 2
                else f"{path} has an empty column in line {number}; allowed: {_COLUMNS}"
            )
        pairs.append(TextPair(*columns))
    return pairs


def read_lines(path: Path) -> list[str]:
    """The lines of a file in UTF-8, without their ends.

    Raises:
      ConfigError: there is no such file, it has no line, or a line is no text.
    """
    if not path.is_file():
        raise ConfigError(f"{str(path)!r} is not a file; allowed: a file of text in UTF-8")
    lines = path.read_bytes().split(b"\n")
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise ConfigError(f"{path} is empty; allowed: one line or more")
    return [_decoded(line, path, number) for number, line in enumerate(lines, start=1)]


def check_source(text: str, number: int) -> None:
    """Checks that a source by itself is one that `read_pairs` could have read.

    Raises:
      ConfigError: it is not; the message tells its number.
    """
    if not text.strip() or any(sign in text for sign in "\t\n\r\0"):
        raise ConfigError(
            f"source {number} is {shown(text)}; allowed: one line of text, not empty and without "
            "a tab"
        )


def to_text(pairs: Iterable[TextPair]) -> str:
    """What `read_pairs` reads: the pairs, one a line."""
    return "".join(f"{source}\t{target}\n" for source, target in pairs)


def _decoded(line: bytes, path: Path, number: int) -> str:
    try:
        # Some editors begin a file with a mark of its encoding.
        text = line.removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 in line {number} (byte {error.start + 1}); allowed: text in UTF-8"
        ) from None
    if "\0" in text:
        raise ConfigError(f"{path} has the character 0 in line {number}; allowed: text in UTF-8")
    return text
