"""The loss of the class that was asked for."""

import jax
import numpy as np

from dit_moe.data import digits
from eval.asked_class import digits as loss
from eval.features.embedded import EMBEDDED


def test_it_is_what_the_classifier_says():
    image, label = digits.load("heldout")
    x = image[:20] / np.float32(127.5) - 1
    y = label[:20].astype(np.int32)
    data = EMBEDDED["digits"]
    expected = data.fit().predict_log_proba(data.describe(image[:20]))
    for shift in (0, 3):
        asked = (y + shift) % 10
        actual = loss(x, asked)
        np.testing.assert_allclose(actual, -expected[np.arange(20), asked], rtol=1e-3, atol=1e-4)
    gradient = jax.grad(lambda x: loss(x, (y + 3) % 10).sum())(x)
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient).max(axis=(1, 2, 3)) > 0).all()
