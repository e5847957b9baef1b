"""The affine map between an autoencoder's latents and what the network sees."""

import numpy as np
from pydantic.dataclasses import dataclass

from dit_moe.config import ConfigError
from dit_moe.config.rules import RULES, require
from dit_moe.storage.files import FilePath
from dit_moe.storage.records import read_record, write_record

_FILE = "latents.json"


@dataclass(frozen=True, config=RULES)
class AutoencoderCard:
    """Which autoencoder made the latents."""

    source: str
    """The folder, file or hub name it was loaded from."""
    sha256: str
    """Hash of its file of weights, hexadecimal."""
    scaling_factor: float
    """What its authors multiply latents by, for a standard deviation of about 1 (0.18215)."""
    shift_factor: float = 0.0
    """What they subtract before."""
    pixel_range: tuple[float, float] = (-1.0, 1.0)
    """Black and white of the pictures that were encoded; decoded ones have the same."""

    def pixels(self, picture: np.ndarray) -> np.ndarray:
        """Decoded pictures with -1 as black and 1 as white, as all others here."""
        low, high = self.pixel_range
        return picture if (low, high) == (-1, 1) else (picture - low) * (2 / (high - low)) - 1


@dataclass(frozen=True, config=RULES)
class LatentSpace:
    """The network sees (latent - mean) / std, per channel. Kept in a run folder as latents.json."""

    autoencoder: AutoencoderCard
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        require(
            len(self.mean) == len(self.std),
            f"mean has {len(self.mean)} channels and std {len(self.std)}; allowed: as many",
        )

    def normalize(self, latent: np.ndarray) -> np.ndarray:
        """Latents [..., c] as the autoencoder makes them to the network's, float32."""
        return (latent - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

    def denormalize(self, x: np.ndarray) -> np.ndarray:
        """The inverse of `normalize`."""
        return x * np.asarray(self.std, np.float32) + np.asarray(self.mean, np.float32)


def write_latent_space(workdir: FilePath, space: LatentSpace | None, *, resuming: bool) -> None:
    """Keeps it with the run; when resuming, only if it is what the run began with.

    Raises:
      ConfigError: the run was trained on other latents.
    """
    path = workdir / _FILE
    if resuming and not same_latents(read_latent_space(workdir), space):
        raise ConfigError(
            f"workdir {str(workdir)!r} was trained on other latents (see {path}); allowed: data "
            "prepared with the same autoencoder and scaled alike, or another --workdir"
        )
    if space is None:
        path.unlink(missing_ok=True)
        return
    write_record(path, space)


def same_latents(a: LatentSpace | None, b: LatentSpace | None) -> bool:
    """Whether both hold the same latents, wherever their autoencoder lies."""
    if a is None or b is None:
        return a is b
    ours, theirs = (
        (s.autoencoder.sha256, s.autoencoder.pixel_range, s.mean, s.std) for s in (a, b)
    )
    return ours == theirs


def read_latent_space(workdir: FilePath) -> LatentSpace | None:
    """The latent space of a run, or None for a model of pictures.

    Raises:
      ConfigError: the file cannot be read.
    """
    path = workdir / _FILE
    return read_record(path, LatentSpace) if path.exists() else None
