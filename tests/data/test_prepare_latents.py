import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from skimage import data

from dit_moe.autoencoder.latent_space import (
    AutoencoderCard,
    LatentSpace,
    read_latent_space,
    write_latent_space,
)
from dit_moe.autoencoder.loading import load
from dit_moe.commands.prepare import main
from dit_moe.config import ConfigError
from dit_moe.data.prepare import shard
from dit_moe.data.prepare.encoder import Encoder
from dit_moe.data.prepared import Prepared
from tests.data import tiny_autoencoder

SIZE, COUNT, PER_SHARD, BATCH = 32, 45, 20, 2
BAD = (4, 19, 20, 33)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory) -> Path:
    return tiny_autoencoder.write(tmp_path_factory.mktemp("autoencoder") / "tiny")


@pytest.fixture(scope="module")
def crops(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """Crops of a photograph in two classes, with files among them that cannot be used."""
    folder, photograph = tmp_path_factory.mktemp("crops"), data.astronaut()
    rng, good = np.random.default_rng(0), {}
    for index in range(COUNT):
        key = f"{'ab'[index // 25]}/{index:02d}.png"
        (folder / key).parent.mkdir(exist_ok=True)
        if index in BAD:
            (folder / key).touch()
            continue
        top, left = rng.integers(512 - SIZE, size=2)
        good[key] = photograph[top : top + SIZE, left : left + SIZE]
        Image.fromarray(good[key]).save(folder / key)
    return folder, good


def flags(folder: Path, output: Path, autoencoder: Path, **more: object) -> list[str]:
    values = {
        "input": folder,
        "output": output,
        "autoencoder": autoencoder,
        "image_size": SIZE,
        "batch_size": BATCH,
        "images_per_shard": PER_SHARD,
        "name": "crops",
        "max_rejected": 0.2,
        "workers": 1,
        **more,
    }
    return [f"--{name}={value}" for name, value in values.items()]


@pytest.fixture(scope="module")
def finished(crops, autoencoder, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("finished") / "out"
    assert main(flags(crops[0], output, autoencoder)) == 0
    return output


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_records_hold_the_posteriors_of_picture_and_mirror_image(crops, autoencoder, finished):
    records = Prepared(finished)
    loaded = load(str(autoencoder))
    assert len(records) == COUNT - len(BAD)
    encode = jax.jit(lambda model, x: model.encode(x))
    for index, (key, crop) in enumerate(crops[1].items()):
        record = records[index]
        assert bytes(record["key"]).decode() == key
        assert "ab"[record["label"]] == key[0]
        pair = np.stack([crop, np.fliplr(crop)]) / np.float32(255) * 2 - 1
        moments = encode(loaded.model, pair.astype(np.float32))
        for field, expected in (("mean", moments.mean), ("log_variance", moments.log_variance)):
            assert record[field].dtype == np.float16
            assert record[field].shape == (2, 16, 16, 4)
            np.testing.assert_allclose(record[field], expected, atol=2e-3, rtol=1e-3)
    # Encoding a mirror image is not mirroring a latent.
    assert np.abs(record["mean"][1] - record["mean"][0][:, ::-1]).max() > 0.05


def test_card_describes_autoencoder_and_latents(autoencoder, finished):
    records = Prepared(finished)
    card = records.card
    assert card.autoencoder is not None
    assert card.autoencoder.sha256 == load(str(autoencoder)).sha256
    assert (card.autoencoder.source, card.autoencoder.scaling_factor) == (str(autoencoder), 0.5)
    assert (card.image_size, card.shape) == (SIZE, (16, 16, 4))
    rng = np.random.default_rng(0)
    samples = []
    for index in range(len(records)):
        record = records[index]
        std = np.exp(record["log_variance"].astype(np.float64) / 2)
        samples.append(record["mean"] + std * rng.standard_normal((8, *std.shape)))
    values = np.stack(samples).reshape(-1, 4)
    np.testing.assert_allclose(card.latent_mean, values.mean(axis=0), atol=0.01)
    np.testing.assert_allclose(card.latent_std, values.std(axis=0), rtol=0.01)


def test_restarted_it_makes_the_same_bytes(crops, autoencoder, finished, tmp_path, monkeypatch):
    output = tmp_path / "out"
    write_shard = shard.write_shard

    def interrupted(path, fields, examples):
        if "-00001-of" in path.name:
            for _ in zip(range(7), examples, strict=False):
                pass
            raise KeyboardInterrupt
        return write_shard(path, fields, examples)

    monkeypatch.setattr(shard, "write_shard", interrupted)
    assert main(flags(crops[0], output, autoencoder, workers=2)) == 130
    assert [path.name for path in (output / ".progress").glob("0*")] == ["00000.json"]
    monkeypatch.setattr(shard, "write_shard", write_shard)
    assert main(flags(crops[0], output, autoencoder, workers=2)) == 0
    assert contents(output) == contents(finished)


def test_numbers_do_not_depend_on_the_devices(autoencoder):
    loaded = load(str(autoencoder))
    image = np.random.default_rng(0).integers(0, 256, (7, SIZE, SIZE, 3)).astype(np.uint8)
    many = Encoder(loaded, BATCH)
    one = Encoder(loaded, BATCH, jax.devices()[:1])
    assert many.batch_size == BATCH * jax.device_count()
    assert one.batch_size == BATCH
    together = many(image)
    parts = [one(image[i : i + BATCH]) for i in range(0, 7, BATCH)]
    for whole, apart in zip(together, zip(*parts, strict=True), strict=True):
        assert whole.shape == (7, 2, 16, 16, 4)
        np.testing.assert_array_equal(whole, np.concatenate(apart))


def test_bfloat16_is_close(autoencoder, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3)).astype(np.uint8)
    exact, _ = Encoder(load(str(autoencoder)), BATCH)(image)
    rough, _ = Encoder(load(str(autoencoder), "bfloat16"), BATCH)(image)
    error = np.abs(rough.astype(np.float32) - exact).max() / np.abs(exact).max()
    assert 1e-4 < error < 0.05


def test_another_autoencoder_is_another_job(crops, autoencoder, finished, tmp_path, capsys):
    other = tiny_autoencoder.write(tmp_path / "other", seed=1)
    assert main(flags(crops[0], finished, other)) == 2
    assert "it differs in autoencoder:" in capsys.readouterr().err
    assert main(flags(crops[0], finished, autoencoder, dtype="bfloat16", batch_size=4)) == 2
    assert "it differs in batch_size, dtype:" in capsys.readouterr().err
    assert main(flags(crops[0], finished, Path("none"))) == 2
    assert "it differs in autoencoder, batch_size, dtype:" in capsys.readouterr().err
    # By its content, not by its place.
    moved = tiny_autoencoder.write(tmp_path / "moved")
    assert main(flags(crops[0], finished, moved)) == 0


def test_autoencoders_that_cannot_be_used(crops, autoencoder, tmp_path, capsys):
    output = tmp_path / "out"
    assert main(flags(crops[0], output, autoencoder, image_size=33)) == 2
    assert (
        "image_size is 33; allowed with this autoencoder: multiples of 2" in capsys.readouterr().err
    )
    assert main(flags(crops[0], output, tmp_path / "absent")) == 2
    assert "absent" in capsys.readouterr().err
    # Weights that overflow: no record is made of them.
    wild = tiny_autoencoder.write(tmp_path / "wild", gain=1e38)
    assert main(flags(crops[0], output, wild)) == 2
    assert "the autoencoder's output is not finite" in capsys.readouterr().err
    assert json.loads((output / "job.json").read_text())["entries"] == COUNT
    assert not list((output / ".progress").glob("0*"))


def test_latents_that_do_not_belong_together(tmp_path):
    space = LatentSpace(AutoencoderCard("a", "0" * 64, 1.0), (0.0, 0.0), (1.0, 1.0))
    write_latent_space(tmp_path, space, resuming=False)
    assert read_latent_space(tmp_path) == space
    path = tmp_path / "latents.json"
    kept = json.loads(path.read_text())
    for std, message in (([1.0], "mean has 2 channels and std 1"), (None, "std: Input should be")):
        path.write_text(json.dumps(kept | {"std": std}))
        with pytest.raises(ConfigError, match=rf"latents\.json cannot be read: .*{message}"):
            read_latent_space(tmp_path)
