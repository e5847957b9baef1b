import hashlib

import numpy as np
import pytest
from sklearn.datasets import load_digits

from dit_moe.data import digits

# The split is part of every published number: these must never change.
CHECKSUMS = {
    "train": "2a272d07993325660a33838b6dee267d4e00ed7225c8ba07de7dda13d20304f6",
    "heldout": "a28e8a684635a97bca3098e3377251dfb144662e2dd50b62d93574ec81028912",
}


@pytest.mark.parametrize(("split", "num"), [("train", 1397), ("heldout", 400)])
def test_split_is_fixed(split, num):
    image_NxHxWxC, label_N = digits.load(split)
    assert image_NxHxWxC.shape == (num, 8, 8, 1)
    assert image_NxHxWxC.dtype == np.uint8
    assert label_N.shape == (num,)
    assert label_N.dtype == np.int32
    content = image_NxHxWxC.tobytes() + label_N.astype("<i4").tobytes()
    assert hashlib.sha256(content).hexdigest() == CHECKSUMS[split]


def test_heldout_has_forty_of_every_class():
    _, label_N = digits.load("heldout")
    assert np.bincount(label_N).tolist() == [40] * 10


def test_splits_are_disjoint_and_together_the_whole():
    images = [digits.load(split)[0].reshape(-1, 64) for split in ("train", "heldout")]
    train, heldout = ({row.tobytes() for row in image_NxD} for image_NxD in images)
    assert not train & heldout
    level_NxD, _ = load_digits(return_X_y=True)
    back_NxD = np.round(np.concatenate(images) / 255 * 16)
    assert sorted(map(tuple, back_NxD)) == sorted(map(tuple, level_NxD))


def test_pixels_are_rounded_sixteenths():
    image_NxHxWxC, _ = digits.load("train")
    expected = np.round(np.arange(17) / 16 * 255).astype(np.uint8)
    np.testing.assert_array_equal(np.unique(image_NxHxWxC), expected)


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match=r"^split is 'test', but .* 'train' or 'heldout'\.$"):
        digits.load("test")  # pyright: ignore[reportArgumentType]
