"""Pairs of images: what is derived, what lies beside, and how a batch holds them."""

import dataclasses

import numpy as np
import pytest

from dit_moe.config import ConfigError, DataConfig, PairsConfig
from dit_moe.config.files import from_dict, to_dict
from dit_moe.data.pairs import blur, derivation, edges, grey, low_resolution
from dit_moe.data.pipeline import batches
from dit_moe.data.sources import build_sources
from tests.prepared_sets import write_latents, write_pictures
from tests.tiny import tiny

MODEL = tiny(None).model


def test_edges():
    """Flat is -1, the border of black and white 1, in any direction of the light."""
    x = np.full((8, 8, 1), -1, np.float32)
    x[:, 4:] = 1
    found = edges(x)[2, :, 0]
    np.testing.assert_allclose(found, [-1, -1, -1, 1, 1, -1, -1, -1], atol=1e-6)
    np.testing.assert_allclose(edges(-x), edges(x), atol=1e-6)
    np.testing.assert_allclose(edges(x.swapaxes(0, 1)), edges(x).swapaxes(0, 1), atol=1e-6)
    colour = np.repeat(x, 3, axis=-1)
    np.testing.assert_allclose(edges(colour), np.repeat(edges(x), 3, axis=-1), atol=1e-6)
    assert edges(x / 2)[2, 3, 0] == pytest.approx(0, abs=1e-6)


def test_grey_blur_and_low_resolution():
    x = np.random.default_rng(0).uniform(-1, 1, (8, 6, 3)).astype(np.float32)
    np.testing.assert_allclose(grey(x)[..., 1], x @ [0.299, 0.587, 0.114], atol=1e-6)
    assert grey(x).shape == blur(x).shape == low_resolution(x).shape == x.shape
    np.testing.assert_allclose(low_resolution(x)[2:4, 4:6, 0], x[2:4, 4:6, 0].mean(), atol=1e-6)
    point = np.zeros((9, 9, 1), np.float32)
    point[4, 4] = 1
    gauss = np.exp(-np.square(np.arange(9) - 4) / 2)
    gauss /= gauss.sum()
    np.testing.assert_allclose(blur(point)[..., 0], np.outer(gauss, gauss), atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "shape", "said"),
    [
        ("grey", (8, 8, 1), "pair is 'grey' with pictures of 1 channels; allowed: 3"),
        ("edges", (8, 8, 4), "pair is 'edges' with pictures of 4 channels; allowed: 1 or 3"),
        ("low_resolution", (8, 7, 3), "'low_resolution' with pictures of 8x7; allowed: even sides"),
    ],
)
def test_what_cannot_be_derived(kind, shape, said):
    with pytest.raises(ConfigError, match=said):
        derivation(kind, shape)


def test_a_batch_of_digits_with_edges():
    """Both images of a pair lie one after another, and the first are those of a run without."""
    plain, data = DataConfig(flip=True), DataConfig(flip=True, pair="edges")
    batch = next(batches(build_sources(data, MODEL), data, 12, seed=3))
    alone = next(batches(build_sources(plain, MODEL), plain, 6, seed=3))
    assert batch.x.shape == (12, 8, 8, 1)
    np.testing.assert_array_equal(batch.x[::2], alone.x)
    np.testing.assert_array_equal(batch.x[1::2], [edges(np.asarray(x)) for x in alone.x])
    np.testing.assert_array_equal(batch.label, np.repeat(alone.label, 2))
    with pytest.raises(ConfigError, match=r"batch_size is 7 with data.pair 'edges' on 1 hosts"):
        next(batches(build_sources(data, MODEL), data, 7, seed=3))
    heldout = build_sources(data, MODEL, "validation")
    assert next(batches(heldout, data, 4, seed=0)).x.shape == (4, 8, 8, 1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Pictures, and others beside them of the same labels."""
    folder = tmp_path_factory.mktemp("sets")
    image = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1)).astype(np.uint8)
    label = np.arange(12) % 3
    write_pictures(folder / "a", image, label)
    write_pictures(folder / "b", 255 - image, label)
    write_pictures(folder / "c", image, label[::-1].copy())
    latent = np.random.default_rng(1).standard_normal((4, 2, 2, 2, 4))
    write_latents(folder / "latents", latent, latent, label[:4])
    return folder


def beside(folders, a="a", b="b", **fields):
    return DataConfig(
        "prepared", (str(folders / a),), pair="folder", pair_path=(str(folders / b),), **fields
    )


def test_a_folder_beside_another(folders):
    for data in (beside(folders), beside(folders, classes=(2, 0))):
        model = dataclasses.replace(MODEL, num_classes=len(data.classes) or 10)
        (source,) = build_sources(data, model)
        batch = next(batches([source], data, 8, seed=1))
        np.testing.assert_allclose(batch.x[1::2], -batch.x[::2], atol=1e-6)
    (alone,) = build_sources(DataConfig("prepared", (str(folders / "a"),)), MODEL)
    assert source.digest != alone.digest  # the others are data, too


def test_what_does_not_belong_together(folders):
    with pytest.raises(ConfigError, match=r"'.*c' beside '.*a', whose images have another labels"):
        build_sources(beside(folders, b="c"), MODEL)
    latents = DataConfig("prepared", (str(folders / "latents"),), pair="edges")
    with pytest.raises(ConfigError, match=r"latents' holds latents; allowed: 'folder', with the"):
        build_sources(latents, MODEL)
    with pytest.raises(ValueError, match="pair_path is '' with pair 'folder' and path ''"):
        DataConfig(pair="folder")
    with pytest.raises(ValueError, match="validation_path is 'v' with pair 'folder'"):
        DataConfig("prepared", ("a",), ("v",), pair="folder", pair_path=("b",))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": {"pair": None}}, "data.pair is None with model.pairs given; allowed: both"),
        ({"model": {"pairs": None}}, "data.pair is 'edges' with model.pairs none; allowed: both"),
        ({"train": {"batch_size": 6, "accumulation": 2}}, "allowed: a multiple of 4, as both"),
        ({"train": {"sample_every": 5}}, "train.sample_every is 5 with model.pairs; allowed: 0"),
        ({"train": {"distill": {"teacher": "a"}}}, "train.distill is given with model.pairs"),
        ({"train": {"learn": ["a"], "freeze": ["b"]}}, "learn is a with freeze; allowed: one of"),
        ({"train": {"learn": ["a"], "post_hoc_ema": [0.1]}}, "post_hoc_ema is 0.1 with learn"),
    ],
)
def test_settings_that_do_not_go_together(change, said):
    config = tiny(None)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, pairs=PairsConfig(rank=4)),
        data=DataConfig(pair="edges"),
    )
    values = to_dict(config)
    for part, fields in change.items():
        values[part] |= fields
    with pytest.raises(ConfigError, match=said):
        from_dict(values)
