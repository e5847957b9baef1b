"""Texts as numbers of pieces, and back without loss.

A piece is a word with the space before it, a sign of punctuation likewise, or other space: joined,
pieces are the text again. What is too rare to be a piece is spelled in characters.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from pydantic.dataclasses import dataclass

from dit_moe.config import ConfigError
from dit_moe.config.rules import RULES
from dit_moe.storage.records import read_record, write_record

PAD, UNKNOWN = 0, 1
"""Of the place after a text's end, and of a character that no training text has."""
_SPECIAL = 2
_UNKNOWN_TEXT = "�"
_PIECE = re.compile(r" ?\w+| ?[^\w\s]|\s")


@dataclass(frozen=True, config=RULES)
class Vocabulary:
    """The pieces that have numbers, from 2 on."""

    pieces: tuple[str, ...]
    by_character: bool
    """All texts are spelled."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_number", {p: i + _SPECIAL for i, p in enumerate(self.pieces)})

    def __len__(self) -> int:
        return len(self.pieces) + _SPECIAL

    def encode(self, text: str) -> list[int]:
        """The numbers of a text's pieces, without those after its end."""
        known: dict[str, int] = self._number  # pyright: ignore[reportAttributeAccessIssue]
        found: list[int] = []
        for piece in cut(text, self.by_character):
            if piece in known:
                found.append(known[piece])
            else:
                found += [known.get(character, UNKNOWN) for character in piece]
        return found

    def decode(self, tokens: Iterable[int]) -> str:
        """The text up to the first place after its end; what is unknown is shown as `�`."""
        pieces = []
        for token in map(int, tokens):
            if token == PAD:
                break
            pieces.append(_UNKNOWN_TEXT if token == UNKNOWN else self.pieces[token - _SPECIAL])
        return "".join(pieces)

    def rows(self, texts: Sequence[str], length: int, name: str, *, cut_off: bool) -> np.ndarray:
        """Texts as rows of tokens, filled up with `PAD`: int32 [N, length].

        Args:
          texts: with one piece or more.
          length: places of a row.
          name: what the texts are, for messages, such as "source".
          cut_off: what is longer loses its end.

        Raises:
          ConfigError: a text is longer, and may not be cut off; the message tells which.
        """
        rows = np.full((len(texts), length), PAD, np.int32)
        for number, text in enumerate(texts, start=1):
            tokens = self.encode(text)
            if len(tokens) > length and not cut_off:
                raise ConfigError(
                    f"{name} {number} has {len(tokens)} tokens; allowed: up to model.{name}_length "
                    f"{length}, a greater length, or data.cut_off true, which drops the rest"
                )
            rows[number - 1, : len(tokens)] = tokens[:length]
        return rows


def cut(text: str, by_character: bool = False) -> list[str]:
    """The pieces of a text, which joined are the text."""
    return list(text) if by_character else _PIECE.findall(text)


def build_vocabulary(texts: Iterable[str], most: int, *, by_character: bool = False) -> Vocabulary:
    """The pieces that come most often, and all characters, so that the rest can be spelled.

    Args:
      texts: those of training.
      most: pieces that are no single character, at most.
      by_character: characters alone.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(cut(text, by_character))
    characters = sorted({character for piece in counts for character in piece})
    longer = [(-count, piece) for piece, count in counts.items() if len(piece) > 1]
    frequent = [piece for _, piece in sorted(longer)[:most]]
    return Vocabulary((*characters, *frequent), by_character)


def write_vocabulary(vocabulary: Vocabulary, path: Path) -> None:
    """Writes it as JSON; the file is whole or absent."""
    write_record(path, vocabulary)


def read_vocabulary(path: Path) -> Vocabulary:
    """Reads what `write_vocabulary` wrote.

    Raises:
      ConfigError: there is no such file, or it is damaged.
    """
    try:
        return read_record(path, Vocabulary)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; allowed: that of the run, put back") from None
