import dataclasses
import itertools
import json

import numpy as np
import pytest

from dit_moe.config import ConfigError, DataConfig
from dit_moe.data import digits, patches
from dit_moe.data.array_records import RecordError
from dit_moe.data.pipeline import batches
from dit_moe.data.sources import build_sources, check_heldout
from tests.prepared_sets import AUTOENCODER, write_latents, write_pictures
from tests.tiny import tiny

RNG = np.random.default_rng(0)


def sources_of(config, split="train"):
    return build_sources(config.data, config.model, split)


def take(config, count, first_step=0, sources=None, **hosts):
    sources = sources or sources_of(config)
    order = config.data, config.train.batch_size, config.seed
    return list(itertools.islice(batches(sources, *order, first_step, **hosts), count))


def prepared(*folders, seed=0, channels=1, **data):
    data = DataConfig(source="prepared", path=tuple(map(str, folders)), **data)
    model = dataclasses.replace(tiny().model, channels=channels)
    return dataclasses.replace(tiny(), data=data, model=model, seed=seed)


def pictures(folder, n=40, size=8, channels=1):
    """Picture i is all i, except for its left edge, which is 255 - i."""
    image = np.arange(n, dtype=np.uint8)[:, None, None, None]
    image = image * np.ones((1, size, size, channels), np.uint8)
    image[:, :, 0] = 255 - image[:, :, 0]
    write_pictures(folder, image, np.arange(n) % 10)
    return image


def numbers(batch):
    """Which pictures of `pictures` a batch has."""
    return np.rint((batch.x[:, 0, 3, 0] + 1) * 127.5).astype(int)


def assert_equal(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a.x, e.x)
        np.testing.assert_array_equal(a.label, e.label)


def test_a_batch():
    (batch,) = take(tiny(), 1)
    assert batch.x.shape == (16, 8, 8, 1)
    assert batch.x.dtype == np.float32
    assert batch.x.min() == -1
    assert batch.x.max() == 1
    assert batch.label.dtype == np.int32


def test_batches_are_a_function_of_seed_and_step():
    all_of_them = take(tiny(), 6)
    assert_equal(take(tiny(), 3, first_step=3), all_of_them[3:])
    other = take(dataclasses.replace(tiny(), seed=1), 1)[0]
    assert (other.label != all_of_them[0].label).any()


def test_an_epoch_has_every_example_once_and_epochs_differ(tmp_path):
    """40 examples in batches of 16: five batches are two epochs."""
    pictures(tmp_path)
    seen = np.concatenate([numbers(batch) for batch in take(prepared(tmp_path), 5)])
    np.testing.assert_array_equal(np.sort(seen[:40]), np.arange(40))
    np.testing.assert_array_equal(np.sort(seen[40:]), np.arange(40))
    assert (seen[:40] != seen[40:]).any()


def test_hosts_share_every_batch(tmp_path):
    pictures(tmp_path)
    config = prepared(tmp_path, flip=True)
    whole = take(config, 6)
    for num_hosts in (2, 4):
        parts = [take(config, 3, 3, host=h, num_hosts=num_hosts) for h in range(num_hosts)]
        joined = [
            type(whole[0])(*(np.concatenate(a) for a in zip(*step, strict=True)))
            for step in zip(*parts, strict=True)
        ]
        assert_equal(joined, whole[3:])


def test_labels_stay_with_their_images():
    images, labels = digits.load("train")
    by_image = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    for batch in take(tiny(), 3):
        uint8 = np.rint((batch.x + 1) * 127.5).astype(np.uint8)
        assert [by_image[image.tobytes()] for image in uint8] == batch.label.tolist()


def test_pictures_on_disk(tmp_path):
    image = pictures(tmp_path, channels=3)
    (batch,) = take(prepared(tmp_path, channels=3), 1)
    expected = image[numbers(batch)].astype(np.float32) / np.float32(127.5) - 1
    np.testing.assert_array_equal(batch.x, expected)
    np.testing.assert_array_equal(batch.label, numbers(batch) % 10)


def test_flips_are_random_and_repeatable(tmp_path):
    pictures(tmp_path)
    config = prepared(tmp_path, flip=True)
    batch, again = (take(config, 1)[0] for _ in range(2))
    np.testing.assert_array_equal(batch.x, again.x)
    mirrored = batch.x[:, 0, 0, 0] == batch.x[:, 0, 3, 0]
    np.testing.assert_array_equal(mirrored, batch.x[:, 0, -1, 0] != batch.x[:, 0, 3, 0])
    assert 0 < mirrored.sum() < 16


def test_latents_are_drawn_from_their_posterior(tmp_path):
    """Record i: mean i (its mirror image: -i) with deviation exp(-i / 8)."""
    n = 16
    record = np.arange(n, dtype=np.float16)[:, None, None, None, None]
    mean = record * np.ones((1, 2, 8, 8, 4), np.float16)
    mean[:, 1] *= -1
    log_variance = -record / 4 * np.ones_like(mean)
    write_latents(tmp_path, mean, log_variance, np.arange(n) % 10)
    config = prepared(tmp_path, channels=4, flip=True)
    steps = take(config, 40)
    x = np.concatenate([batch.x for batch in steps]).astype(np.float64)
    x /= AUTOENCODER.scaling_factor
    centre = np.rint(x.mean(axis=(1, 2, 3))).astype(int)
    assert (centre > 0).any()
    assert (centre < 0).any()
    for i in (2, 9, -9, -15):
        drawn = x[centre == i]
        assert len(drawn) >= 3
        assert len({d.tobytes() for d in drawn}) == len(drawn)  # fresh noise every time
        deviation = np.exp(-abs(i) / 8)
        assert abs(drawn.mean() - i) < 5 * deviation / drawn.size**0.5
        np.testing.assert_allclose(drawn.std(), deviation, rtol=5 / (2 * drawn.size) ** 0.5)
    assert_equal(take(config, 2, first_step=38), steps[38:])


def test_per_channel_scaling_gives_unit_latents(tmp_path):
    mean = RNG.normal([3, -1, 0, 8], [4, 2, 1, 0.1], (64, 2, 8, 8, 4))
    log_variance = np.full_like(mean, -1)
    write_latents(tmp_path, mean, log_variance, np.arange(64) % 10)
    config = prepared(tmp_path, channels=4, flip=True, latent_scaling="per_channel")
    x = np.concatenate([batch.x for batch in take(config, 8)])
    np.testing.assert_allclose(x.mean(axis=(0, 1, 2)), 0, atol=0.05)
    np.testing.assert_allclose(x.std(axis=(0, 1, 2)), 1, atol=0.05)


def test_heldout_latents_are_scaled_as_those_that_are_trained_on(tmp_path):
    label, other = np.arange(8), dataclasses.replace(AUTOENCODER, sha256="1" * 64)
    for name, scale, autoencoder in (("a", 1, AUTOENCODER), ("b", 5, AUTOENCODER), ("c", 5, other)):
        mean = RNG.normal(0, scale, (8, 2, 8, 8, 4))
        write_latents(tmp_path / name, mean, np.zeros_like(mean), label, autoencoder=autoencoder)
    for scaling in ("per_channel", "autoencoder"):
        how = {"channels": 4, "latent_scaling": scaling}
        config = prepared(tmp_path / "a", **how, validation_path=(str(tmp_path / "b"),))
        (train,), (heldout,) = sources_of(config), sources_of(config, "validation")
        assert heldout.latent_space == train.latent_space
        assert heldout.digest != train.digest
        check_heldout([train], [heldout])
        config = prepared(tmp_path / "a", **how, validation_path=(str(tmp_path / "c"),))
        with pytest.raises(ConfigError, match="validation_path has latents of another"):
            check_heldout([train], sources_of(config, "validation"))
    assert not sources_of(prepared(tmp_path / "a", channels=4), "validation")


def test_statistics_on_the_card(tmp_path):
    mean = RNG.normal([3, -1], [4, 2], (32, 2, 8, 8, 2)).astype(np.float16)
    log_variance = RNG.uniform(-6, 1, mean.shape).astype(np.float16)
    card = write_latents(tmp_path, mean, log_variance, np.arange(32) % 10)
    mean, variance = mean.astype(np.float64), np.exp(log_variance.astype(np.float64))
    np.testing.assert_allclose(card.latent_mean, mean.mean(axis=(0, 1, 2, 3)), rtol=1e-12)
    expected = np.sqrt(mean.var(axis=(0, 1, 2, 3)) + variance.mean(axis=(0, 1, 2, 3)))
    np.testing.assert_allclose(card.latent_std, expected, rtol=1e-12)


def test_class_subset(tmp_path):
    pictures(tmp_path)
    config = prepared(tmp_path, classes=(7, 2))
    with pytest.raises(ConfigError, match=r"num_classes is 10 with 2 of config\.data\.classes"):
        sources_of(config)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=2))
    seen = take(config, 4)
    for batch in seen:
        np.testing.assert_array_equal(np.array([7, 2])[batch.label], numbers(batch) % 10)
    assert set(np.concatenate([numbers(b) for b in seen])) == {2, 7, 12, 17, 22, 27, 32, 37}


def test_mixed_resolutions(tmp_path):
    pictures(tmp_path / "small", size=8)
    pictures(tmp_path / "large", size=16)
    config = prepared(tmp_path / "small", tmp_path / "large", mix_weights=(3, 1))
    steps = take(config, 40)
    sizes = [batch.x.shape[1] for batch in steps]
    assert sizes.count(8) == 30
    assert sizes.count(16) == 10
    assert_equal(take(config, 20, first_step=20), steps[20:])
    parts = [take(config, 40, host=h, num_hosts=2) for h in range(2)]
    assert [[b.x.shape[1] for b in part] for part in parts] == [sizes, sizes]
    seen = np.concatenate([numbers(b) for b in steps if b.x.shape[1] == 16])
    np.testing.assert_array_equal(np.sort(seen[:40]), np.arange(40))


def test_the_patches():
    (image, label), (held, _) = patches.load("train"), patches.load("heldout")
    assert image.shape == (20_000, 32, 32, 3)
    assert held.shape == (10_000, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(label), 2500)
    model = dataclasses.replace(tiny().model, image_size=32, channels=3)
    config = dataclasses.replace(tiny(), data=DataConfig(source="patches"), model=model)
    (batch,) = take(config, 1)
    known = {i.tobytes(): c for i, c in zip(image, label, strict=True)}
    uint8 = np.rint((batch.x + 1) * 127.5).astype(np.uint8)
    assert [known[i.tobytes()] for i in uint8] == batch.label.tolist()


def test_train_and_heldout_patches_share_no_pixel(monkeypatch):
    """On photographs whose pixels are all different."""
    photograph = np.arange(256 * 320, dtype=np.int64).reshape(256, 320, 1)
    monkeypatch.setattr(patches, "photographs", lambda: [photograph, photograph + photograph.size])
    train, held = (set(patches.load(split)[0].ravel().tolist()) for split in ("train", "heldout"))
    assert len(train) > 80_000
    assert len(held) > 20_000
    assert not train & held


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 16}, "image_size is 8 with patch_size 2 but data set"),
        ({"channels": 3}, "config.model.channels is 1 but data set"),
        ({"classes": (3, 11)}, "config.data.classes has 11, of which"),
    ],
)
def test_a_set_that_disagrees_is_refused(tmp_path, change, message):
    data = {"classes": change.pop("classes", ())}
    pictures(tmp_path, **change)
    with pytest.raises(ConfigError) as error:
        sources_of(prepared(tmp_path, **data))
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_more_classes_than_the_model_are_refused(tmp_path):
    write_pictures(tmp_path, np.zeros((4, 8, 8, 1), np.uint8), np.arange(9, 13), classes=13)
    with pytest.raises(ConfigError, match=r"num_classes is 10 but the labels .* span 9 to 12"):
        sources_of(prepared(tmp_path))


def test_latents_of_two_autoencoders_do_not_mix(tmp_path):
    zeros = np.zeros((4, 2, 8, 8, 4))
    other = dataclasses.replace(AUTOENCODER, sha256="1" * 64)
    write_latents(tmp_path / "a", zeros, zeros, np.arange(4))
    write_latents(tmp_path / "b", zeros, zeros, np.arange(4), autoencoder=other)
    with pytest.raises(ConfigError, match="whose latents are of another autoencoder"):
        sources_of(prepared(tmp_path / "a", tmp_path / "b", channels=4))


def test_sets_of_other_classes_do_not_mix(tmp_path):
    image = np.zeros((4, 8, 8, 1), np.uint8)
    write_pictures(tmp_path / "a", image, np.arange(4), classes=10)
    write_pictures(tmp_path / "b", image, np.arange(4), classes=9)
    with pytest.raises(ConfigError, match="which has other classes; allowed: sets with the same"):
        sources_of(prepared(tmp_path / "a", tmp_path / "b"))


def test_a_damaged_record_is_named(tmp_path):
    pictures(tmp_path)
    (source,) = sources_of(prepared(tmp_path))
    shards = sorted(tmp_path.glob("*.array_record-*"))
    content = bytearray(shards[1].read_bytes())
    for place in range(200, 60_000):  # between the headers
        content[place] ^= 1
    shards[1].write_bytes(content)
    half = len(source) // 2
    assert source[half - 1]["image"][0, 3, 0] == half - 1
    with pytest.raises(RecordError) as raised:
        source[half + 3]
    assert str(raised.value).startswith(f"record 3 of {shards[1]} cannot be read (")
    with pytest.raises(RecordError, match=r"cannot be read .* prepare it again"):
        take(prepared(tmp_path), 10, sources=[source])
    with pytest.raises(IndexError):
        source[len(source)]


def test_an_unfinished_or_damaged_set_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"has no prepared\.json; allowed: a folder that"):
        sources_of(prepared(tmp_path))
    pictures(tmp_path)
    shard = next(tmp_path.glob("*.array_record-00001-*"))
    shard.rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"lacks tiny-train.*1 of 5 files are missing"):
        sources_of(prepared(tmp_path))
    (tmp_path / "elsewhere").rename(shard)
    (tmp_path / "labels.npy").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"is damaged \(EOFError\)"):
        sources_of(prepared(tmp_path))
    (tmp_path / "prepared.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"prepared\.json cannot be read: name"):
        sources_of(prepared(tmp_path))


def test_another_format_is_refused(tmp_path):
    pictures(tmp_path)
    path = tmp_path / "prepared.json"
    card = json.loads(path.read_text())
    assert card["format"] == 1
    path.write_text(json.dumps({**card, "format": 2}))
    with pytest.raises(ConfigError, match=r"prepared\.json is of format 2, .* a newer dit_moe$"):
        sources_of(prepared(tmp_path))
    del card["format"]  # as before there was a number
    path.write_text(json.dumps(card))
    assert len(sources_of(prepared(tmp_path))) == 1


@pytest.mark.parametrize("lost", ["label", "image"])
def test_a_set_whose_records_lost_a_field_is_refused(tmp_path, lost):
    pictures(tmp_path)
    path = tmp_path / "features.json"
    described = json.loads(path.read_text())
    del described["featuresDict"]["features"][lost]
    path.write_text(json.dumps(described))
    with pytest.raises(ConfigError, match=f"its records lack {lost}; prepare it again"):
        sources_of(prepared(tmp_path))
