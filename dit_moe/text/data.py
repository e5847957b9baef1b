"""A run's pairs of texts as tokens, and batches of these."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dit_moe.config import ConfigError
from dit_moe.text.config import TextConfig, TextDataConfig, TextModelConfig
from dit_moe.text.numbers import Split, number_pairs
from dit_moe.text.pairs_of_text import TextPair, read_pairs, to_text
from dit_moe.text.vocabulary import Vocabulary, build_vocabulary


class Tokens(NamedTuple):
    """Pairs of texts as tokens, or a batch of them."""

    source: np.ndarray
    """[N, S] int32."""
    target: np.ndarray
    """[N, S'] int32."""


def load_pairs(data: TextDataConfig, split: Split) -> list[TextPair]:
    """The pairs of one split; none of held-out ones where the config names no file.

    Raises:
      ConfigError: they cannot be read.
    """
    if data.source == "numbers":
        first, second = data.languages
        return number_pairs((first, second), data.below, split)
    path = data.path if split == "train" else data.validation_path
    return read_pairs(Path(path)) if path else []


def vocabulary_of(data: TextDataConfig, pairs: Sequence[TextPair]) -> Vocabulary:
    """Of sources and targets of training together."""
    texts = (text for pair in pairs for text in pair)
    return build_vocabulary(texts, data.pieces, by_character=data.by_character)


def to_tokens(
    pairs: Sequence[TextPair], vocabulary: Vocabulary, config: TextConfig, name: str
) -> Tokens:
    """The pairs as tokens; `name` tells in messages whose they are.

    Raises:
      ConfigError: a text is longer than the model takes.
    """
    model, cut_off = config.model, config.data.cut_off
    try:
        return Tokens(
            source_tokens([pair.source for pair in pairs], vocabulary, model, cut_off=cut_off),
            vocabulary.rows(
                [pair.target for pair in pairs], model.target_length, "target", cut_off=cut_off
            ),
        )
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def source_tokens(
    texts: Sequence[str], vocabulary: Vocabulary, model: TextModelConfig, *, cut_off: bool
) -> np.ndarray:
    """Sources alone: int32 [N, S]; errors as of `to_tokens`."""
    return vocabulary.rows(texts, model.source_length, "source", cut_off=cut_off)


def digest(pairs: Sequence[TextPair]) -> str:
    """The same for the same pairs in the same order, wherever they lie."""
    return hashlib.sha256(to_text(pairs).encode()).hexdigest()


def batches(tokens: Tokens, batch_size: int, seed: int, first_step: int = 0) -> Iterator[Tokens]:
    """Yields the batch of `first_step`, then of the next, without end.

    Every epoch is shuffled anew, and a batch may span several; it is a function of (seed, step).
    """
    number = len(tokens.source)
    order: dict[int, np.ndarray] = {}
    step = first_step
    while True:
        place = np.arange(step * batch_size, (step + 1) * batch_size)
        epochs = place // number
        order = {
            epoch: order[epoch] if epoch in order else _shuffled(number, seed, epoch)
            for epoch in np.unique(epochs).tolist()
        }
        rows = np.concatenate([order[e][place[epochs == e] % number] for e in order])
        yield Tokens(tokens.source[rows], tokens.target[rows])
        step += 1


def _shuffled(number: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(number)
