import dataclasses
import itertools

import numpy as np
import pytest

from dit_moe.config import ConfigError, DataConfig
from dit_moe.data import digits
from dit_moe.data.pipeline import batches
from dit_moe.data.sources import build_source
from tests.tiny import tiny

RNG = np.random.default_rng(0)


def take(config, count, first_step=0):
    source = build_source(config)
    return list(itertools.islice(batches(config, source, first_step), count))


def arrays_config(folder, **data):
    data = DataConfig(source="arrays", path=str(folder), **data)
    return dataclasses.replace(tiny(), data=data)


def write_arrays(folder, x, label):
    np.save(folder / "x.npy", x)
    np.save(folder / "label.npy", label)
    return arrays_config(folder)


def test_a_batch():
    (batch,) = take(tiny(), 1)
    assert batch.x.shape == (16, 8, 8, 1)
    assert batch.x.dtype == np.float32
    assert batch.x.min() == -1
    assert batch.x.max() == 1
    assert batch.label.dtype == np.int32


def test_batches_are_a_function_of_seed_and_step():
    all_of_them = take(tiny(), 6)
    for expected, actual in zip(all_of_them[3:], take(tiny(), 3, first_step=3), strict=True):
        np.testing.assert_array_equal(expected.x, actual.x)
        np.testing.assert_array_equal(expected.label, actual.label)
    other = take(dataclasses.replace(tiny(), seed=1), 1)[0]
    assert (other.label != all_of_them[0].label).any()


def test_an_epoch_has_every_example_once_and_epochs_differ(tmp_path):
    """40 examples in batches of 16: five batches are two epochs."""
    x = np.arange(40, dtype=np.float32)[:, None, None, None] * np.ones((1, 8, 8, 1), np.float32)
    config = write_arrays(tmp_path, x, np.arange(40) % 10)
    seen = np.concatenate([batch.x[:, 0, 0, 0] for batch in take(config, 5)]).astype(int)
    np.testing.assert_array_equal(np.sort(seen[:40]), np.arange(40))
    np.testing.assert_array_equal(np.sort(seen[40:]), np.arange(40))
    assert (seen[:40] != seen[40:]).any()


def test_labels_stay_with_their_images():
    images, labels = digits.load("train")
    by_image = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    for batch in take(tiny(), 3):
        uint8 = np.rint((batch.x + 1) * 127.5).astype(np.uint8)
        assert [by_image[image.tobytes()] for image in uint8] == batch.label.tolist()


def test_flips_are_random_and_repeatable(tmp_path):
    x = RNG.normal(size=(16, 8, 8, 1)).astype(np.float32)
    write_arrays(tmp_path, x, np.arange(16) % 10)
    config = arrays_config(tmp_path, flip=True)
    batch, again = (take(config, 1)[0] for _ in range(2))
    np.testing.assert_array_equal(batch.x, again.x)
    plain = {image.tobytes() for image in x}
    mirrored = {image[:, ::-1].tobytes() for image in x}
    kinds = [image.tobytes() in plain for image in batch.x]
    assert all(k or image.tobytes() in mirrored for k, image in zip(kinds, batch.x, strict=True))
    assert 0 < sum(kinds) < 16


@pytest.mark.parametrize(
    ("x", "label", "message"),
    [
        (np.zeros((4, 8, 8, 3), np.uint8), np.arange(4), "give examples of shape (8, 8, 1)"),
        (np.zeros((4, 8, 8, 1), np.uint8), np.arange(9, 13), "num_classes is 10 but the labels"),
        (np.zeros((4, 8, 8, 1), np.uint8), np.arange(-1, 3), "span -1 to 2"),
        (np.zeros((4, 8, 8), np.uint8), np.arange(4), "allowed: x [N, H, W, C]"),
        (np.zeros((4, 8, 8, 1), np.uint8), np.arange(5), "allowed: x [N, H, W, C]"),
        (np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4), "integer label"),
        (np.zeros((4, 8, 8, 1), np.int64), np.arange(4), "is int64; allowed: uint8 or a float"),
        (np.zeros((4, 8, 8, 1), object), np.arange(4), "is not a plain .npy array"),
    ],
)
def test_bad_arrays(tmp_path, x, label, message):
    config = write_arrays(tmp_path, x, label)
    with pytest.raises(ConfigError) as error:
        build_source(config)
    assert message in str(error.value)


def test_missing_arrays(tmp_path):
    with pytest.raises(ConfigError, match=r"which has no x\.npy; allowed: a folder with"):
        build_source(arrays_config(tmp_path))
