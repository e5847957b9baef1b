"""Latents that others made, as inputs: fast-DiT's and EDM2's."""

import dataclasses
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from configs.prepared import get_config
from dit_moe.autoencoder.latent_space import same_latents
from dit_moe.commands.prepare import main
from dit_moe.config import ConfigError
from dit_moe.data.prepare.input import Entry, Input
from dit_moe.data.prepare.inputs import open_input
from dit_moe.data.prepared import Prepared, latent_space
from dit_moe.data.sources import build_sources
from dit_moe.devices.mesh import build_mesh
from dit_moe.sampling.rendering import build_renderer
from dit_moe.storage.npz import parse_npy
from dit_moe.storage.pictures import ImageError
from tests.data import tiny_autoencoder

RNG = np.random.default_rng(0)
SHAPE = (4, 16, 16)
RAW = RNG.normal(1, 2, (5, *SHAPE)).astype(np.float32)
STD = np.abs(RNG.normal(0, 0.3, (5, *SHAPE))).astype(np.float32)
LABELS = [2, 0, 1, 0, 2]
SCALE = 0.5  # of the tiny autoencoder


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def fast_dit(folder: Path, numbers=(0, 1, 2, 10, 9)) -> Path:
    """As extract_features.py writes it: scaled, with an axis of one."""
    for number, x, label in zip(numbers, RAW, LABELS, strict=True):
        for kind, content in (("features", x[None] * np.float32(SCALE)), ("labels", [label])):
            path = folder / f"imagenet256_{kind}" / f"{number}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(npy(np.asarray(content)))
    return folder


def edm2(folder: Path, labels=LABELS) -> dict[str, bytes]:
    """The files that dataset_tool.py encode writes, by name; written, too."""
    names = [f"00000/img-mean-std-{i:08d}.npy" for i in range(5)]
    both = np.concatenate([RAW, STD], axis=1)
    files = {name: npy(x) for name, x in zip(names, both, strict=True)}
    listed = None if labels is None else list(zip(names, labels, strict=True))
    files["dataset.json"] = json.dumps({"labels": listed}).encode()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return files


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory) -> Path:
    return tiny_autoencoder.write(tmp_path_factory.mktemp("autoencoder") / "tiny")


def prepare(path: Path, output: Path, autoencoder: Path | str, *flags: str) -> int:
    needed = ["--input", path, "--output", output, "--autoencoder", autoencoder]
    return main([*map(str, needed), "--image_size=32", "--workers=1", *flags])


@pytest.fixture(scope="module")
def made(autoencoder, tmp_path_factory) -> dict[str, Path]:
    """A finished set of each kind."""
    root = tmp_path_factory.mktemp("made")
    edm2(root / "edm2")
    inputs = {"fast_dit": fast_dit(root / "fast_dit"), "edm2": root / "edm2"}
    for kind, path in inputs.items():
        assert prepare(path, root / f"{kind}-out", autoencoder) == 0
    return {kind: root / f"{kind}-out" for kind in inputs}


def reason(found: Input, key: str) -> str:
    with pytest.raises(ImageError) as info:
        found.reader.read(Entry(key, 0))
    return str(info.value)


def refusal(path: Path, source="auto") -> str:
    with pytest.raises(ConfigError) as info:
        open_input(source, str(path), "train")
    assert "\n" not in str(info.value)
    return str(info.value)


def test_fast_dit(made):
    """In the order of numbers, unscaled, without variance or mirror images."""
    records = Prepared(made["fast_dit"])
    order = [0, 1, 2, 4, 3]  # 9 before 10
    assert records.label.tolist() == [LABELS[i] for i in order]
    for place, i in enumerate(order):
        record = records[place]
        assert record["mean"].shape == (1, 16, 16, 4)
        expected = RAW[i].transpose(1, 2, 0)
        np.testing.assert_allclose(record["mean"][0], expected, rtol=2e-3, atol=1e-3)
        assert (np.exp(record["log_variance"].astype(float) / 2) < 1e-6).all()
    card = records.card
    assert not card.mirrored
    np.testing.assert_allclose(card.latent_mean, RAW.mean((0, 2, 3)), atol=2e-3)
    np.testing.assert_allclose(card.latent_std, RAW.std((0, 2, 3)), rtol=2e-3)


def test_edm2(made):
    records = Prepared(made["edm2"])
    assert records.label.tolist() == LABELS
    for i in range(5):
        record = records[i]
        np.testing.assert_allclose(record["mean"][0], RAW[i].transpose(1, 2, 0), rtol=1e-3)
        std = np.exp(record["log_variance"][0].astype(float) / 2)
        np.testing.assert_allclose(std, STD[i].transpose(1, 2, 0), rtol=1e-2, atol=1e-6)
    variance = RAW.var((0, 2, 3)) + (STD**2).mean((0, 2, 3))
    np.testing.assert_allclose(records.card.latent_std, np.sqrt(variance), rtol=2e-3)


def test_training_on_them(made):
    """Examples are what fast-DiT trains on; there is nothing to flip."""
    config = get_config(str(made["fast_dit"]))
    assert not config.data.flip
    (source,) = build_sources(config.data, config.model)
    x = source.draw(source[1], False, np.random.default_rng(0))
    np.testing.assert_allclose(x, SCALE * RAW[1].transpose(1, 2, 0), rtol=2e-3, atol=1e-3)
    flipped = dataclasses.replace(config.data, flip=True)
    with pytest.raises(ConfigError, match=r"flip is True, but data set .* no latents of mirror im"):
        build_sources(flipped, config.model)


def test_pictures_of_edm2_are_decoded_in_its_range(made):
    """Its autoencoder saw black as 0 and white as 1."""
    spaces = {kind: latent_space(Prepared(path).card, "autoencoder") for kind, path in made.items()}
    assert not same_latents(spaces["edm2"], spaces["fast_dit"])
    mesh = build_mesh(get_config(str(made["edm2"])).mesh)
    renderers = {kind: build_renderer(space, None, mesh) for kind, space in spaces.items()}
    x_NxHxWxC = RNG.normal(0, 1, (2, 16, 16, 4)).astype(np.float32)
    usual, theirs = (
        renderers[kind].render(x_NxHxWxC).astype(float) for kind in ("fast_dit", "edm2")
    )
    middle = (usual > 130) & (usual < 250)
    assert middle.any()
    # v in -1..1 is (v + 1) 127.5 usually, and v in 0..1 is v 255 here.
    expected = (usual / 127.5 - 1) * 255
    assert np.abs(theirs - expected)[middle].max() <= 2
    assert renderers["edm2"].description["pixel_range"] == (0.0, 1.0)


def test_a_zip_of_edm2_is_as_its_folder(tmp_path):
    files = edm2(tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    assert "latents of EDM2 with --source edm2" in refusal(tmp_path / "a.zip")
    folder = open_input("auto", str(tmp_path / "in"), "train")
    packed = open_input("edm2", str(tmp_path / "a.zip"), "train")
    assert folder.kind == "edm2"
    assert packed.entries == folder.entries
    for entry in folder.entries:
        for ours, theirs in zip(
            folder.reader.read(entry)[0], packed.reader.read(entry)[0], strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
    edm2(tmp_path / "in", None)
    assert open_input("auto", str(tmp_path / "in"), "train").classes == ("all",)


def test_files_that_cannot_be_used(tmp_path):
    path = fast_dit(tmp_path / "a") / "imagenet256_features"
    good = (path / "1.npy").read_bytes()
    odd = {
        "cut short": good[:-4],
        "holds pickled Python objects": npy_object(),
        "a damaged header": b"\x93NUMPY" + good[6:20],
        "numbers of type <U1": npy(np.array(["a"])),
        "shape (4, 8, 8), unlike the first": npy(np.zeros((1, 4, 8, 8))),
        "shape (2, 4, 16, 16), unlike the first": npy(np.zeros((2, 4, 16, 16))),
    }
    found = open_input("auto", str(tmp_path / "a"), "train")
    for message, content in odd.items():
        (path / "1.npy").write_bytes(content)
        assert message in reason(found, "imagenet256_features/1.npy")
    files = edm2(tmp_path / "b")
    name = min(files)
    found = open_input("auto", str(tmp_path / "b"), "train")
    (tmp_path / "b" / name).write_bytes(npy(-np.ones((8, 16, 16))))
    assert reason(found, name) == "standard deviations below 0"


def npy_object() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    return file.getvalue()


def test_pickles_are_never_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    for content in (pickle.dumps(Bomb()), npy_object()[:-10] + pickle.dumps(Bomb())):
        with pytest.raises(ValueError):  # noqa: PT011 -- whatever the reason
            parse_npy(content)
    assert not (tmp_path / "ran").exists()


def test_sets_that_cannot_be_used(tmp_path):
    assert "has not one folder whose name ends in features" in refusal(tmp_path, "fast_dit")
    path = fast_dit(tmp_path / "a")
    (path / "imagenet256_labels/2.npy").unlink()
    assert "has '2.npy' in one of its folders alone (1 such files)" in refusal(path)
    for content, message in (
        (npy(np.array([1.5])), "in 'imagenet256_labels/2.npy' 1.5; allowed: one whole number"),
        (npy(np.array([1, 2])), "int64 (2,); allowed"),
        (npy(np.array([-1])), "-1; allowed"),
        (npy_object(), "not an array (holds pickled Python objects"),
    ):
        (path / "imagenet256_labels/2.npy").write_bytes(content)
        assert message in refusal(path)
    (path / "imagenet256_labels/2.npy").write_bytes(npy(np.array([1])))
    (path / "imagenet256_features/0.npy").write_bytes(npy(np.zeros(3)))
    assert "an array of shape (3,); allowed: channels, height and width" in refusal(path)
    (path / "imagenet256_features/0.npy").write_bytes(b"")
    assert "'imagenet256_features/0.npy' is not an array" in refusal(path)
    files = edm2(tmp_path / "b")
    (tmp_path / "b" / min(files)).write_bytes(npy(np.zeros((7, 16, 16))))
    assert "latents of 7 channels; allowed: an even number" in refusal(tmp_path / "b")
    (tmp_path / "c").mkdir()
    assert "has no dataset.json or no .npy files" in refusal(tmp_path / "c", "edm2")


def test_flags_that_do_not_fit(autoencoder, tmp_path, capsys):
    path = fast_dit(tmp_path / "in")
    edm2(tmp_path / "edm2")
    for place, source, flags, message in (
        (path, "none", [], "holds latents (fast_dit); allowed with autoencoder: the one that made"),
        (path, autoencoder, ["--image_size=64"], "has latents of 16x16x4, but this image_size and"),
        (path, autoencoder, ["--latent_scale=0"], "latent_scale is 0.0; allowed: a number above 0"),
        (tmp_path / "edm2", autoencoder, ["--latent_scale=1"], "for an input of edm2; allowed"),
    ):
        assert prepare(place, tmp_path / "out", source, *flags) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_scale_and_a_wrong_one(autoencoder, tmp_path, capsys):
    path = fast_dit(tmp_path / "in")
    (path / "imagenet256_features/1.npy").write_bytes(npy(np.full((1, *SHAPE), 1e5, np.float32)))
    assert (
        prepare(path, tmp_path / "out", autoencoder, "--latent_scale=0.01", "--max_rejected=1") == 0
    )
    printed = capsys.readouterr().out
    assert "ready-made latents, multiplied by 0.01, of pictures from -1 (black) to 1" in printed
    assert "where about 1 is usual: is --latent_scale right" in printed
    assert "1  not finite, or exceeds float16 (such as imagenet256_features/1.npy)" in printed
    np.testing.assert_allclose(
        Prepared(tmp_path / "out")[0]["mean"][0], 50 * RAW[0].transpose(1, 2, 0), rtol=1e-3
    )
    assert prepare(path, tmp_path / "out", autoencoder) == 2
    assert "it differs in latent_scale" in capsys.readouterr().err
