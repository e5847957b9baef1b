"""The Inception Score."""

from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax


class InceptionScore(NamedTuple):
    """Mean and population standard deviation over splits."""

    mean: float
    std: float


def inception_score(logit_NxK: np.ndarray, split_size: int = 5000) -> InceptionScore:
    """exp of the mean KL divergence of p(class | image) from p(class), averaged over splits.

    Salimans et al., "Improved Techniques for Training GANs" (2016). Splits are consecutive runs of
    `split_size` images, as in ADM's evaluator; the last one may be shorter and counts the same.

    Args:
        logit_NxK: [N, K] real numbers; Inception-v3 has K = 1008. Which logits, with or without
            their bias, is the extractor's affair.
        split_size: images of a split.

    Returns:
        The score, from 1 (all images alike or undecided) to K, and its spread over splits.

    Raises:
        ValueError: not [N, K] with N, K >= 1, or not finite.
    """
    if logit_NxK.ndim != 2 or not logit_NxK.size or not np.isfinite(logit_NxK).all():
        raise ValueError(f"Logits have shape {logit_NxK.shape}, but must be finite [N, K].")
    scores = []
    for start in range(0, len(logit_NxK), split_size):
        log_p_NxK = log_softmax(logit_NxK[start : start + split_size].astype(np.float64), axis=1)
        p_NxK = np.exp(log_p_NxK)
        mean_K = p_NxK.mean(0)
        # 0 log 0 is 0, where a class underflows in every image.
        log_mean_K = np.log(np.where(mean_K > 0, mean_K, 1))
        scores.append(np.exp(np.sum(p_NxK * (log_p_NxK - log_mean_K), axis=1).mean()))
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))
