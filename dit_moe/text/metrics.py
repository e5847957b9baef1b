"""How generated texts are judged beside references: exact match, BLEU, ROUGE-L, distinct-n."""

from collections.abc import Callable, Sequence

from dit_moe.text.extras import need_package

NAMES = ("exact_match", "bleu", "rouge_l", "distinct_1", "distinct_2", "distinct_4")
"""Shares from 0 to 1, but for BLEU, which goes to 100."""


def judge(generated: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The metrics by `NAMES`, of texts and their references, as many as those.

    BLEU is sacreBLEU's of the corpus, with its signs of punctuation apart; ROUGE-L is the mean F
    of rouge-score over words as they stand; distinct-n is the share of different n-grams of words
    in all of those.

    Raises:
      ConfigError: a package is not installed.
    """
    found = {
        "exact_match": exact_match(generated, references),
        "bleu": bleu(generated, references),
        "rouge_l": rouge_l(generated, references),
    }
    return found | {f"distinct_{n}": distinct(generated, n) for n in (1, 2, 4)}


def exact_match(generated: Sequence[str], references: Sequence[str]) -> float:
    """The share of texts that are their reference, but for space around it."""
    same = [a.strip() == b.strip() for a, b in zip(generated, references, strict=True)]
    return sum(same) / len(same)


def bleu(generated: Sequence[str], references: Sequence[str]) -> float:
    """BLEU of the corpus, 0 to 100.

    Raises:
      ConfigError: sacrebleu is not installed.
    """
    need_package("sacrebleu", "which computes BLEU")
    import sacrebleu

    return sacrebleu.corpus_bleu(generated, [references]).score


def sentence_bleu() -> Callable[[str, str], float]:
    """A function from a text and a reference to BLEU of these alone, 0 to 100.

    Raises:
      ConfigError: sacrebleu is not installed.
    """
    need_package("sacrebleu", "which computes BLEU")
    import sacrebleu

    return lambda text, reference: sacrebleu.sentence_bleu(text, [reference]).score


def rouge_l(generated: Sequence[str], references: Sequence[str]) -> float:
    """The mean of ROUGE-L's F over texts, 0 to 1.

    Raises:
      ConfigError: rouge-score is not installed.
    """
    need_package("rouge_score", "which computes ROUGE-L")
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    scores = [
        scorer.score(reference, text)["rougeL"].fmeasure
        for text, reference in zip(generated, references, strict=True)
    ]
    return sum(scores) / len(scores)


def distinct(texts: Sequence[str], n: int) -> float:
    """How many of all n-grams of words differ: 0 to 1, and 0 where texts have none so long."""
    grams = [
        tuple(words[i : i + n])
        for words in map(str.split, texts)
        for i in range(len(words) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else 0.0


class _Words:
    """The package's own would drop every letter that is not of the English alphabet."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()
