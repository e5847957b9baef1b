"""Which of several candidates is taken: the one that agrees most with the others."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

Utility = Callable[[str, str], float]
"""From a text and one that it is judged by, such as BLEU."""


def best_candidate(candidates: Sequence[str], utility: Utility) -> int:
    """The candidate of least expected risk, by the candidates themselves (minimum Bayes risk).

    That is the one with the greatest mean utility beside all others; of several, the first. The
    same texts are judged once.

    Args:
      candidates: one or more.
      utility: need not be symmetric.
    """
    if len(candidates) == 1:
        return 0
    counts = Counter(candidates)
    texts = list(counts)
    number = np.array([counts[text] for text in texts])
    gain = np.array([[utility(text, other) for other in texts] for text in texts])
    # A candidate is no witness of itself, but others that are the same text are.
    expected = gain @ number - np.diag(gain)
    # Not the largest to the last bit: sums in another order differ there.
    best = np.flatnonzero(expected >= expected.max() - 1e-9 * max(1.0, abs(expected.max())))[0]
    return list(candidates).index(texts[best])
