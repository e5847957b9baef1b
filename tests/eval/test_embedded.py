"""The classifiers that judge the embedded data sets."""

import numpy as np
import pytest

from dit_moe.data import digits
from eval.features.embedded import EMBEDDED, EmbeddedExtractor
from eval.image_set import ImageSetError
from eval.image_sets import open_set


@pytest.mark.parametrize(("name", "at_least"), [("digits", 0.95), ("patches", 0.75)])
def test_they_know_their_data(name, at_least, monkeypatch):
    image_set = open_set(name)
    network = EMBEDDED[name].fit()
    monkeypatch.setattr(type(EMBEDDED[name]), "fit", lambda self: network)
    extractor = EmbeddedExtractor(name)
    image_NxHxWxC = image_set.read()
    outputs = extractor(image_NxHxWxC)
    assert np.mean(outputs["logits"].argmax(1) == image_set.label) > at_least
    assert outputs["pool"].shape == (image_set.num, 64)
    # The logits follow from the features by the network's own last layer.
    expected = network.predict_log_proba(EMBEDDED[name].describe(image_NxHxWxC[:50]))
    logit_NxK = outputs["logits"][:50].astype(np.float64)
    log_p = logit_NxK - np.log(np.exp(logit_NxK).sum(1, keepdims=True))
    np.testing.assert_allclose(log_p, expected, atol=1e-4)


def test_description_identifies_the_trained_network(monkeypatch):
    expected = EmbeddedExtractor("digits").description
    assert EmbeddedExtractor("digits").description == expected
    network = EMBEDDED["digits"].fit()
    network.coefs_[1][0, 0] += 1e-6
    monkeypatch.setattr(type(EMBEDDED["digits"]), "fit", lambda self: network)
    other = EmbeddedExtractor("digits").description
    assert len(other["weights_sha256"]) == 64
    assert other["weights_sha256"] != expected["weights_sha256"]


def test_images_of_another_size_are_refused():
    with pytest.raises(ImageSetError, match=r"features 'patches' need \[N, 32, 32, 1 or 3\]"):
        EmbeddedExtractor("patches")(np.zeros((2, 8, 8, 1), np.uint8))


def test_held_out_sets_have_a_name():
    image_set = open_set("digits")
    np.testing.assert_array_equal(image_set.read(), digits.load("heldout")[0])
    assert image_set.path == "digits (held-out)"
    later = np.concatenate(list(image_set.batches(64, 128)))
    np.testing.assert_array_equal(later, digits.load("heldout")[0][128:])
