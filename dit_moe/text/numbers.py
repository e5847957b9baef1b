"""The embedded task: numbers in words, from one language to another, some of them held out.

The words are those of the package num2words.
"""

from typing import Literal

import numpy as np

from dit_moe.config import ConfigError
from dit_moe.text.extras import need_package
from dit_moe.text.pairs_of_text import TextPair

Split = Literal["train", "heldout"]

LANGUAGES = ("de", "en", "es", "fr", "it", "nl", "pt")
HELDOUT_SHARE = 10
"""One number of so many is held out."""
_SPLIT_SEED = 0


def number_pairs(languages: tuple[str, str], below: int, split: Split) -> list[TextPair]:
    """The numbers from 0 of one split in words, ascending.

    Args:
      languages: of source and target.
      below: the first number that is none of them.
      split: the held-out numbers are the same for all languages.

    Raises:
      ConfigError: num2words is not installed.
    """
    need_package("num2words", "which has the numbers of data.source 'numbers' in words")
    from num2words import num2words

    source, target = languages
    return [
        TextPair(num2words(number, lang=source), num2words(number, lang=target))
        for number in split_numbers(below, split).tolist()
    ]


def split_numbers(below: int, split: Split) -> np.ndarray:
    """The numbers of one split, ascending: int64 [N]. One in ten is held out, drawn at random.

    Raises:
      ConfigError: there are too few numbers to hold one out.
    """
    if below < HELDOUT_SHARE:
        raise ConfigError(f"data.below is {below}; allowed: {HELDOUT_SHARE} or more")
    # RandomState and not default_rng: NumPy promises never to change its stream (NEP 19).
    shuffled = np.random.RandomState(_SPLIT_SEED).permutation(below)
    heldout = below // HELDOUT_SHARE
    return np.sort(shuffled[:heldout] if split == "heldout" else shuffled[heldout:])
