"""Pairs of images: each of a source with what is derived from it, or with what lies beside it."""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import ndimage
from skimage import filters

from dit_moe.autoencoder.latent_space import same_latents
from dit_moe.config import ConfigError
from dit_moe.config.data import PairKind
from dit_moe.data.source import Record, Source
from dit_moe.storage.colours import LUMA

Derive = Callable[[np.ndarray], np.ndarray]
"""From a picture, float32 [H, W, C] in [-1, 1], to another of this shape."""

_STEP = 2**0.5
"""What makes an upright or level edge between black and white 1: skimage's operator gives
1 / sqrt(2)."""
_FACTOR = 2


def grey(x_HxWxC: np.ndarray) -> np.ndarray:
    """The luma in every channel; a picture of one channel is that already."""
    if x_HxWxC.shape[-1] == 1:
        return x_HxWxC
    luma = x_HxWxC @ np.asarray(LUMA, np.float32)
    return np.repeat(luma[..., None], 3, axis=-1)


def edges(x_HxWxC: np.ndarray) -> np.ndarray:
    """The size of the luma's gradient (Sobel): -1 where it is flat, 1 between black and white."""
    size_HxW = _STEP * filters.sobel((grey(x_HxWxC)[..., 0] + 1) / 2)
    found = np.clip(2 * size_HxW - 1, -1, 1).astype(np.float32)
    return np.repeat(found[..., None], x_HxWxC.shape[-1], axis=-1)


def blur(x_HxWxC: np.ndarray) -> np.ndarray:
    """A Gaussian mean whose deviation is a 16th of the shorter side, and at least a pixel."""
    deviation = max(1.0, min(x_HxWxC.shape[:2]) / 16)
    return ndimage.gaussian_filter(x_HxWxC, (deviation, deviation, 0), mode="nearest")


def low_resolution(x_HxWxC: np.ndarray) -> np.ndarray:
    """The mean of every 2 x 2 pixels in all of them."""
    height, width, channels = x_HxWxC.shape
    blocks = x_HxWxC.reshape(height // _FACTOR, _FACTOR, width // _FACTOR, _FACTOR, channels)
    mean = blocks.mean(axis=(1, 3), keepdims=True)
    return np.broadcast_to(mean, blocks.shape).reshape(x_HxWxC.shape)


DERIVED: dict[PairKind, Derive] = {
    "edges": edges,
    "grey": grey,
    "blur": blur,
    "low_resolution": low_resolution,
}


def derivation(kind: PairKind, shape: Sequence[int]) -> Derive:
    """What makes the second image of a pair from the first, of this shape.

    Raises:
      ConfigError: it cannot be made of such pictures.
    """
    height, width, channels = shape
    if channels not in (1, 3) or (kind == "grey" and channels == 1):
        allowed = "3" if kind == "grey" else "1 or 3"
        raise ConfigError(
            f"config.data.pair is {kind!r} with pictures of {channels} channels; allowed: {allowed}"
        )
    if kind == "low_resolution" and (height % _FACTOR or width % _FACTOR):
        raise ConfigError(
            f"config.data.pair is 'low_resolution' with pictures of {height}x{width}; allowed: "
            "even sides"
        )
    return DERIVED[kind]


class Derived:
    """Pictures of a source with what is derived of them.

    Args:
      source: pictures.
      derive: as of `derivation`.
    """

    def __init__(self, source: Source, derive: Derive):
        self._source, self._derive = source, derive
        self.shape: tuple[int, ...] = source.shape
        self.label, self.classes = source.label, source.classes
        self.latent_space = source.latent_space
        self.digest = source.digest  # what is derived, the config says

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        return self._source[index]

    def draw(self, record: Record, mirrored: bool, rng: np.random.Generator) -> np.ndarray:
        """The two images of a pair: float32 [2, H, W, C]."""
        x = self._source.draw(record, mirrored, rng)
        return np.stack([x, self._derive(x)])


class Beside:
    """The examples of a source with those of the same numbers of another.

    Args:
      source: the first images.
      other: the second ones, prepared alike.
      names: of both, for messages.

    Raises:
      ConfigError: they do not belong together.
    """

    def __init__(self, source: Source, other: Source, names: tuple[str, str]):
        for what, own, others in (
            ("shape", list(source.shape), list(other.shape)),
            ("number", len(source), len(other)),
            ("classes", source.classes, other.classes),
            ("labels", source.label.tolist(), other.label.tolist()),
        ):
            if own != others:
                raise ConfigError(
                    f"config.data.pair_path has {names[1]!r} beside {names[0]!r}, whose images "
                    f"have another {what}; allowed: sets prepared alike, of files with the same "
                    "names"
                )
        if not same_latents(source.latent_space, other.latent_space):
            raise ConfigError(
                f"config.data.pair_path has {names[1]!r} beside {names[0]!r}, whose latents are of "
                "another autoencoder or scaled otherwise; allowed: sets prepared alike, and "
                "latent_scaling 'autoencoder'"
            )
        self._source, self._other = source, other
        self.shape: tuple[int, ...] = source.shape
        self.label, self.classes = source.label, source.classes
        self.latent_space = source.latent_space
        self.digest = hashlib.sha256(f"{source.digest} {other.digest}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        first, second = self._source[index], self._other[index]
        both = {"first": first, "second": second}
        fields = {f"{name} {k}": v for name, part in both.items() for k, v in part.items()}
        return {**fields, "label": first["label"]}

    def draw(self, record: Record, mirrored: bool, rng: np.random.Generator) -> np.ndarray:
        """The two images of a pair: float32 [2, H, W, C]."""
        return np.stack(
            [
                source.draw(_of(record, name), mirrored, rng)
                for name, source in (("first ", self._source), ("second ", self._other))
            ]
        )


def _of(record: Mapping[str, np.ndarray], prefix: str) -> Record:
    return {k.removeprefix(prefix): v for k, v in record.items() if k.startswith(prefix)}
