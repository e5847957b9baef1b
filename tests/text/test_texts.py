"""Pairs of texts, the embedded task, pieces and metrics."""

import itertools
import sys

import numpy as np
import pytest

from dit_moe.config import ConfigError
from dit_moe.text import metrics
from dit_moe.text.numbers import number_pairs, split_numbers
from dit_moe.text.pairs_of_text import TextPair, read_pairs, to_text
from dit_moe.text.vocabulary import (
    PAD,
    UNKNOWN,
    build_vocabulary,
    read_vocabulary,
    write_vocabulary,
)


def test_pairs_are_read_as_they_were_written(tmp_path):
    pairs = [TextPair("ein Haus", "une maison"), TextPair("zwölf", "douze")]
    path = tmp_path / "pairs.tsv"
    path.write_text(to_text(pairs), encoding="utf-8")
    assert read_pairs(path) == pairs
    path.write_bytes("\ufeff".encode() + to_text(pairs).replace("\n", "\r\n").encode())
    assert read_pairs(path) == pairs


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"a\tb\nc d\n", "has 1 columns in line 2; allowed: a source, one tab and a target"),
        (b"a\tb\tc\n", "has 3 columns in line 1"),
        (b"a\tb\n\tb\n", "has an empty column in line 2"),
        (b"a\tb\n\n", "has 1 columns in line 2"),
        (b"a\tb\nc\t\xff\n", "is not UTF-8 in line 2 (byte 3)"),
        (b"a\tb\x00\n", "has the character 0 in line 1"),
        (b"", "is empty; allowed: one line or more"),
    ],
)
def test_lines_that_are_no_pair_are_refused_by_number(tmp_path, text, said):
    path = tmp_path / "pairs.tsv"
    path.write_bytes(text)
    with pytest.raises(ConfigError) as raised:
        read_pairs(path)
    assert said in str(raised.value)


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not a file; allowed: a file of text in UTF-8"):
        read_pairs(tmp_path)


def test_numbers_are_either_learnt_or_held_out():
    train, heldout = split_numbers(100, "train"), split_numbers(100, "heldout")
    assert len(heldout) == 10
    assert sorted([*train, *heldout]) == list(range(100))
    with pytest.raises(ConfigError, match=r"data.below is 9; allowed: 10 or more"):
        split_numbers(9, "train")


def test_numbers_in_words():
    pairs = number_pairs(("en", "fr"), 100, "train")
    assert len(pairs) == 90
    assert TextPair("ninety-seven", "quatre-vingt-dix-sept") in pairs


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "num2words", None)
    with pytest.raises(ConfigError, match=r"pip install 'dit-moe\[text\]'"):
        number_pairs(("en", "fr"), 100, "train")


TEXTS = ["two  thousand, one-", "ein Fünftel – «ja»", "\n", "eine eine"]


@pytest.mark.parametrize("by_character", [False, True])
def test_pieces_lose_nothing(tmp_path, by_character):
    vocabulary = build_vocabulary(TEXTS, 100, by_character=by_character)
    path = tmp_path / "vocabulary.json"
    write_vocabulary(vocabulary, path)
    read = read_vocabulary(path)
    for text in TEXTS:
        tokens = read.encode(text)
        assert UNKNOWN not in tokens
        assert read.decode([*tokens, PAD, 5]) == text
    assert len(read) == 2 + len(read.pieces)


def test_rare_pieces_are_spelled_and_unknown_characters_shown():
    vocabulary = build_vocabulary(["so so so oh"], 1)
    assert vocabulary.pieces == (" ", "h", "o", "s", " so")
    assert vocabulary.decode(vocabulary.encode("oh so")) == "oh so"
    assert vocabulary.decode(vocabulary.encode("sod")) == "so�"


def test_rows_are_filled_up_and_longer_texts_refused():
    vocabulary = build_vocabulary(["a b c"], 10)
    rows = vocabulary.rows(["a b", "a"], 3, "source", cut_off=False)
    assert rows.dtype == np.int32
    assert (rows == PAD).sum(axis=1).tolist() == [1, 2]
    with pytest.raises(ConfigError, match=r"^target 2 has 3 tokens; allowed: up to model.target_l"):
        vocabulary.rows(["a", "a b c"], 2, "target", cut_off=False)
    cut_off = vocabulary.rows(["a b c"], 2, "target", cut_off=True)
    assert vocabulary.decode(cut_off[0]) == "a b"


def test_metrics_of_known_texts():
    texts, references = ["a b c d", "x y"], ["a b c d ", "x z"]
    found = metrics.judge(texts, references)
    assert tuple(found) == metrics.NAMES
    assert found["exact_match"] == 0.5
    assert found["rouge_l"] == pytest.approx((1 + 0.5) / 2)
    assert found["distinct_1"] == 1
    assert metrics.judge(references, references)["bleu"] == pytest.approx(100)
    assert metrics.rouge_l(["é ü"], ["é ö"]) == 0.5  # letters beyond the English ones count


def test_distinct_counts_as_by_hand():
    texts = ["a b a b", "a b"]
    grams = [g for t in texts for g in itertools.pairwise(t.split())]
    assert metrics.distinct(texts, 2) == len(set(grams)) / len(grams) == 2 / 4
    assert metrics.distinct(texts, 5) == 0
