"""Minimum Bayes risk against a loop over all pairs of candidates."""

import numpy as np
import pytest

from dit_moe.text.best import best_candidate
from dit_moe.text.metrics import sentence_bleu

WORDS = ["a", "b", "c", "d"]


def brute_force(candidates, utility):
    means = [
        sum(utility(own, other) for j, other in enumerate(candidates) if j != i)
        for i, own in enumerate(candidates)
    ]
    best = max(means)
    return next(i for i, mean in enumerate(means) if mean > best - 1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_best_is_that_of_brute_force(seed):
    rng, utility = np.random.default_rng(seed), sentence_bleu()
    candidates = [" ".join(rng.choice(WORDS, rng.integers(3, 7))) for _ in range(7)]
    candidates += candidates[1:3]  # what comes twice is its own witness
    assert best_candidate(candidates, utility) == brute_force(candidates, utility)


def test_agreement_wins_and_of_equals_the_first():
    utility = sentence_bleu()
    assert best_candidate(["x y", "a b c d", "a b c d"], utility) == 1
    assert best_candidate(["x y", "x y"], utility) == 0
    assert best_candidate(["x"], utility) == 0


def test_a_utility_need_not_be_symmetric():
    candidates = ["aaa", "aa", "a"]

    def longer(text, other):
        return float(len(text) > len(other))

    assert best_candidate(candidates, longer) == brute_force(candidates, longer) == 0
    assert best_candidate(candidates, lambda a, b: longer(b, a)) == 2
