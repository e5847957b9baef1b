"""From a folder of pictures through latents, training and sampling back to pictures."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from skimage import data

from dit_moe.autoencoder.latent_space import read_latent_space
from dit_moe.autoencoder.loading import load
from dit_moe.commands import prepare, preview
from dit_moe.config import Config, ConfigError, DataConfig, SampleConfig
from dit_moe.sampling.run_sampler import RunSampler
from dit_moe.sampling.sample_set import write_sample_set
from dit_moe.storage import images
from dit_moe.training.loop import train
from tests.data import tiny_autoencoder
from tests.prepared_sets import write_pictures
from tests.tiny import tiny


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    return tiny_autoencoder.write(tmp_path_factory.mktemp("autoencoder") / "tiny")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, autoencoder):
    """24 crops of a photograph in two classes as 8x8x4 latents."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for i in range(24):
        path = folder / "crops" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        top, left = rng.integers(496, size=2)
        Image.fromarray(data.astronaut()[top : top + 16, left : left + 16]).save(path)
    flags = {
        "input": folder / "crops",
        "output": folder / "latents",
        "autoencoder": autoencoder,
        "image_size": 16,
        "batch_size": 8,
        "workers": 1,
    }
    assert prepare.main([f"--{name}={value}" for name, value in flags.items()]) == 0
    return folder / "latents"


def latent_config(prepared, **settings) -> Config:
    config = tiny(steps=1, sample_every=1)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, channels=4),
        data=DataConfig(source="prepared", path=(str(prepared),), flip=True, **settings),
        sample=SampleConfig(steps=2),
    )


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    config = latent_config(prepared, latent_scaling="per_channel")
    assert train(config, workdir) is None
    return workdir


def sample(run, output, **settings):
    sampler = RunSampler(run, ema=True, batch_size=8, num_samples=5, **settings)
    npz, _ = write_sample_set(sampler, output)
    with np.load(npz, allow_pickle=False) as arrays:
        return arrays["arr_0"]


def test_samples_are_decoded_latents(run, autoencoder, tmp_path):
    latent = sample(run, tmp_path / "latents", autoencoder="none")
    assert latent.shape == (5, 8, 8, 4)
    assert latent.dtype == np.float32
    picture = sample(run, tmp_path / "pictures")
    assert picture.shape == (5, 16, 16, 3)
    space = read_latent_space(run)
    assert space is not None
    model = load(str(autoencoder)).model
    expected = model.decode(latent * np.array(space.std) + np.array(space.mean))
    difference = picture.astype(int) - images.to_uint8(np.asarray(expected))
    assert np.abs(difference).max() <= 1  # the last bit may round differently
    assert picture.std() > 1


def test_grids_of_training_are_decoded(run):
    """16x16 pictures are enlarged to 64x64; so would 8x8 latents be, but in blocks of 8."""
    with Image.open(run / "samples" / "step_00000001.png") as picture:
        tile = np.asarray(picture)[:64, -69:-5]
    blocks = tile.reshape(16, 4, 16, 4, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    larger = tile.reshape(8, 8, 8, 8, 3)
    assert (larger != larger[:, :1, :, :1]).any()


def test_a_missing_autoencoder(run, tmp_path):
    with pytest.raises(ConfigError, match="autoencoder is 'nowhere', which does not exist"):
        sample(run, tmp_path, autoencoder="nowhere")


def test_resuming_on_other_latents_is_refused(run, prepared, autoencoder, tmp_path):
    """The same data under another autoencoder."""
    other = tiny_autoencoder.write(tmp_path / "other", seed=1)
    flags = {"input": prepared.parent / "crops", "output": tmp_path / "latents", "image_size": 16}
    main = prepare.main([f"--{k}={v}" for k, v in {**flags, "autoencoder": other}.items()])
    assert main == 0
    config = latent_config(tmp_path / "latents", latent_scaling="per_channel")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2))
    with pytest.raises(ConfigError, match="was trained on other latents"):
        train(config, run)


def test_preview(prepared, tmp_path, capsys):
    output = tmp_path / "preview.png"
    assert preview.main([f"--input={prepared}", f"--output={output}"]) == 0
    with Image.open(output) as picture:
        assert picture.size == (48 + 8 * 69, 2 * 69)
        first, mirrored = (
            np.asarray(picture)[2:62, 48 + 69 * i : 48 + 69 * i + 64].astype(int) for i in (0, 1)
        )
    # The autoencoder is random and no mirror-symmetric map, but colours stay near.
    assert np.abs(first.mean((0, 1)) - mirrored.mean((0, 1))).max() < 30
    assert preview.main([f"--input={prepared}", f"--output={output}", "--classes=2"]) == 2
    assert "classes is '2'; allowed: numbers from 0 to 1" in capsys.readouterr().err


def test_preview_of_pictures(tmp_path):
    image = np.random.default_rng(0).integers(256, size=(6, 8, 8, 3), dtype=np.uint8)
    write_pictures(tmp_path, image, np.arange(6) % 2, classes=2)
    output = tmp_path / "preview.png"
    assert preview.main([f"--input={tmp_path}", f"--output={output}"]) == 0
    with Image.open(output) as picture:
        drawn = np.asarray(picture)
    left = drawn.shape[1] - 8 * 69 if drawn.shape[1] > 8 * 69 else drawn.shape[1] - 6 * 69
    for row in range(2):
        for column in range(6):
            top, start = row * 69, left + column * 69
            shown = drawn[top : top + 64 : 8, start : start + 64 : 8]
            source = image[row + 2 * (column // 2)]
            np.testing.assert_array_equal(shown, source[:, ::-1] if column % 2 else source)


def test_a_model_of_pictures_takes_no_autoencoder(tmp_path):
    workdir = tmp_path / "run"
    assert train(tiny(None, steps=1), workdir) is None
    with pytest.raises(ConfigError, match="is no model of latents; allowed: no --autoencoder"):
        sample(workdir, tmp_path / "out", autoencoder="somewhere")
