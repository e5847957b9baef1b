"""Small prepared data sets for tests."""

from pathlib import Path

import numpy as np

from dit_moe.autoencoder.latent_space import AutoencoderCard
from dit_moe.data.prepared import Card, features, finish, shard_name, write_shard

AUTOENCODER = AutoencoderCard(source="nowhere", sha256="0" * 64, scaling_factor=0.25)


def write_pictures(folder: Path, image: np.ndarray, label: np.ndarray, classes: int = 10) -> Card:
    """A set of uint8 [N, H, W, C] in two files."""
    records = [
        {"image": image[i], "label": int(label[i]), "key": f"{i}.png"} for i in range(len(image))
    ]
    return _write(folder, records, image.shape[1:], classes, None)


def write_latents(
    folder: Path,
    mean: np.ndarray,
    log_variance: np.ndarray,
    label: np.ndarray,
    classes: int = 10,
    autoencoder: AutoencoderCard = AUTOENCODER,
) -> Card:
    """A set of posteriors [N, 2, h, w, c] in two files."""
    records = [
        {
            "mean": np.asarray(mean[i], np.float16),
            "log_variance": np.asarray(log_variance[i], np.float16),
            "label": int(label[i]),
            "key": str(i),
        }
        for i in range(len(mean))
    ]
    return _write(folder, records, mean.shape[2:], classes, autoencoder)


def _write(folder: Path, records: list, shape, classes: int, autoencoder) -> Card:
    folder.mkdir(exist_ok=True, parents=True)
    names = [f"class {i}" for i in range(classes)]
    fields = features(shape, names, latents=autoencoder is not None)
    half = len(records) // 2
    shards = [
        write_shard(folder / shard_name("tiny", i, 2), fields, part)
        for i, part in enumerate((records[:half], records[half:]))
    ]
    return finish(
        folder,
        name="tiny",
        image_size=8 * shape[0] if autoencoder else shape[0],
        shape=shape,
        classes=names,
        autoencoder=autoencoder,
        shards=shards,
        description="a test",
    )
