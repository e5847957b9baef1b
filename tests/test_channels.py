"""Sets of one, two and four channels, from a folder of pictures to judged samples."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from dit_moe.commands import prepare, preview
from dit_moe.config import ConfigError, DataConfig, ModelConfig
from dit_moe.config.files import load_file
from dit_moe.data.prepare.decode import decode
from dit_moe.data.prepare.inputs import open_input
from dit_moe.data.prepared import Prepared
from dit_moe.sampling.known_images import SteeringRequest, read_steering
from dit_moe.sampling.run_sampler import RunSampler
from dit_moe.sampling.sample_set import write_sample_set
from dit_moe.storage import images
from dit_moe.storage.colours import MODES, on_white
from dit_moe.training.loop import train
from eval.image_set import ImageSetError
from eval.image_sets import open_set
from eval.run_samples import open_run
from tests.tiny import tiny

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 pictures of 8x8 with alpha in two classes."""
    root = tmp_path_factory.mktemp("pictures")
    for i in range(24):
        path = root / "in" / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(RNG.integers(0, 256, (8, 8, 4)).astype(np.uint8)).save(path)
    return root / "in"


def prepared(folder, channels: int, *flags: str):
    output = folder.parent / f"of-{channels}"
    command = [f"--input={folder}", f"--output={output}", "--image_size=8", "--workers=1"]
    if not output.exists():
        command += ["--autoencoder=none", f"--channels={channels}", *flags]
        assert prepare.main(command) == 0
    return output


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A run of a moment on pictures with alpha."""
    workdir, config = tmp_path_factory.mktemp("run"), tiny(None, steps=1, sample_every=1)
    model = dataclasses.replace(config.model, channels=4, num_classes=2)
    data = DataConfig(source="prepared", path=(str(prepared(folder, 4)),))
    assert train(dataclasses.replace(config, model=model, data=data), workdir) is None
    return workdir


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_a_prepared_set_of_so_many_channels(folder, channels, tmp_path):
    output = prepared(folder, channels)
    stored = Prepared(output)
    assert stored.card.shape == (8, 8, channels)
    with Image.open(folder / bytes(stored[0]["key"]).decode()) as original:
        picture = original.convert("RGBA")
        if channels == 1:
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture)
        expected = np.asarray(picture.convert(MODES[channels])).reshape(8, 8, channels)
    if channels != 1:
        expected = np.where(expected[..., -1:] == 0, 0, expected)
    np.testing.assert_array_equal(stored[0]["image"], expected)
    assert load_file(f"configs/prepared.py:{output}").model.channels == channels
    assert preview.main([f"--input={output}", f"--output={tmp_path / 'seen.png'}"]) == 0
    with Image.open(tmp_path / "seen.png") as grid:
        corner = grid.size[0] - images.grid(np.zeros((8, 8, 8, 1), np.uint8), ["0 a"] * 8).size[0]
        assert corner == 0
        first = np.asarray(grid)[:64, -8 * (64 + 5) :][:, :64][4::8, 4::8]
    shown = on_white(stored[0]["image"][None])[0]
    np.testing.assert_array_equal(first, np.broadcast_to(shown, (8, 8, 3)))


def test_a_prepared_set_is_an_input_again(folder):
    output = prepared(folder, 2)
    found, stored = open_input("tfds", str(output), "train"), Prepared(output)
    for number in (0, 20):
        pixels, label = found.reader.read(found.entries[number])
        assert label == stored[number]["label"]
        np.testing.assert_array_equal(decode(pixels, 8, 2), stored[number]["image"])


def test_samples_and_grids_have_alpha(run, tmp_path):
    sampler = RunSampler(run, ema=True, batch_size=8, num_samples=6, integration={"steps": 2})
    assert sampler.image_shape == (8, 8, 4)
    npz, png = write_sample_set(sampler, tmp_path)
    with np.load(npz) as archive:
        drawn, labels = archive["arr_0"], archive["arr_1"]
    assert drawn.dtype == np.uint8
    assert drawn.shape == (6, 8, 8, 4)
    with Image.open(png) as grid:
        expected = images.grid(on_white(drawn), ["ab"[label] for label in labels])
        np.testing.assert_array_equal(np.asarray(grid), np.asarray(expected))
    with Image.open(next((run / "samples").glob("*.png"))) as grid:
        assert grid.mode == "RGB"


def test_pictures_with_alpha_are_judged_on_white(run, folder, tmp_path):
    """The same whatever they are stored in."""
    settings = {"ema": True, "num_samples": 6, "integration": {"steps": 2}}
    drawn, _ = open_run(run, batch_size=8, **settings)
    saved, _ = open_run(run, batch_size=8, save=tmp_path, **settings)
    assert drawn.shape == saved.shape == (8, 8, 3)
    np.testing.assert_array_equal(drawn.read(), saved.read())
    with np.load(saved.path) as archive:
        np.testing.assert_array_equal(saved.read(), on_white(archive["arr_0"]))

    files, stored = open_set(folder), open_set(prepared(folder, 4))
    assert files.shape == stored.shape == (8, 8, 3)
    np.testing.assert_array_equal(files.read(), stored.read())
    np.savez(tmp_path / "five.npz", np.zeros((2, 8, 8, 5), np.uint8))
    with pytest.raises(ImageSetError, match="C of 1 to 4"):
        open_set(tmp_path / "five.npz")


def test_grey_pictures_are_read_with_their_channel_repeated(folder, tmp_path):
    """Files become what the feature networks make of arrays of one channel."""
    grey = open_set(prepared(folder, 1))
    assert grey.shape == (8, 8, 1)
    pixels = grey.read()
    for number, picture in enumerate(pixels):
        Image.fromarray(picture[..., 0]).save(tmp_path / f"{number:02d}.png")
    np.testing.assert_array_equal(open_set(tmp_path).read(), pixels.repeat(3, axis=3))


def test_known_pictures_get_the_channels_of_the_model(folder):
    model = ModelConfig(image_size=8, channels=2, num_classes=2, width=8, depth=1, heads=1)
    small = SteeringRequest("super_resolution", folder / "a")
    for channels in (1, 2, 4):
        steering = read_steering(small, dataclasses.replace(model, channels=channels))
        assert steering.known.shape == (12, 4, 4, channels)
        assert steering.pictures(np.arange(2)).shape == (2, 8, 8, channels)
    with pytest.raises(ConfigError, match="has 2 channels; allowed: a model with 3"):
        read_steering(SteeringRequest("colorize", folder / "a"), model)


def test_channels_that_are_no_picture_are_refused(folder, capsys):
    command = [f"--input={folder}", f"--output={folder.parent / 'none'}", "--image_size=8"]
    assert prepare.main([*command, "--autoencoder=none", "--channels=5"]) == 2
    assert "channels is 5; allowed: 1, 2, 3, 4" in capsys.readouterr().err
    assert not (folder.parent / "none").exists()


def test_another_number_of_channels_is_another_job(folder, capsys):
    output = prepared(folder, 2)
    job = json.loads((output / "job.json").read_text())
    assert job["channels"] == 2
    command = [f"--input={folder}", f"--output={output}", "--image_size=8", "--workers=1"]
    assert prepare.main([*command, "--autoencoder=none"]) == 2
    assert "differs in channels" in capsys.readouterr().err
