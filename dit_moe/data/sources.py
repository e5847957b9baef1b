"""Where examples come from: random access to pictures or latents with labels."""

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from dit_moe.autoencoder.latent_space import LatentSpace, same_latents
from dit_moe.config import Config, ConfigError, DataConfig
from dit_moe.data import digits, patches
from dit_moe.data.prepared import Prepared, latent_space

Record = dict[str, np.ndarray]


class Source(Protocol):
    """Records by number, and how an example is drawn from one."""

    shape: tuple[int, ...]
    """[H, W, C] of an example."""
    label: np.ndarray
    """[N] int32, of all records."""
    classes: tuple[str, ...]
    """Their names."""
    latent_space: LatentSpace | None
    """None: examples are pictures in [-1, 1]."""
    digest: str
    """The same for the same records, wherever they lie."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def draw(self, record: Record, mirrored: bool, rng: np.random.Generator) -> np.ndarray:
        """An example, float32 [H, W, C]."""
        ...


class Pictures:
    """Pictures in memory or on disk.

    Args:
      image: [N, H, W, C] uint8, or records with the field `image`.
      label_N: [N] labels.
      classes: their names.
    """

    latent_space: LatentSpace | None = None

    def __init__(self, image: np.ndarray | Prepared, label_N: np.ndarray, classes: tuple[str, ...]):
        self._image = image
        self.digest = (
            image.digest
            if isinstance(image, Prepared)
            else hashlib.sha256(image.tobytes() + label_N.tobytes()).hexdigest()
        )
        self.label = label_N
        self.classes = classes
        self.shape: tuple[int, ...] = (
            image.card.shape if isinstance(image, Prepared) else image.shape[1:]
        )

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, index: int) -> Record:
        image = self._image[index]
        image = image["image"] if isinstance(image, dict) else image
        return {"image": image, "label": self.label[index]}

    def draw(self, record: Record, mirrored: bool, rng: np.random.Generator) -> np.ndarray:
        """0..255 mapped to [-1, 1]."""
        del rng
        image = record["image"][:, ::-1] if mirrored else record["image"]
        return image / np.float32(127.5) - 1


class Latents:
    """Posteriors of an autoencoder on disk."""

    def __init__(self, prepared: Prepared, space: LatentSpace):
        self._prepared = prepared
        self._space = space
        self.latent_space: LatentSpace | None = space
        self.digest = prepared.digest
        self.label = prepared.label
        self.classes = prepared.card.classes
        self.shape: tuple[int, ...] = prepared.card.shape

    def __len__(self) -> int:
        return len(self._prepared)

    def __getitem__(self, index: int) -> Record:
        return self._prepared[index]

    def draw(self, record: Record, mirrored: bool, rng: np.random.Generator) -> np.ndarray:
        """A sample of the posterior of the picture or of its mirror image, normalised."""
        x = rng.standard_normal(self.shape, np.float32)
        # In place: this is most of an example's cost.
        std = record["log_variance"][int(mirrored)].astype(np.float32)
        std *= 0.5
        x *= np.exp(std, out=std)
        x += record["mean"][int(mirrored)]
        return self._space.normalize(x)


class ClassSubset:
    """The records of some classes; label i means classes[i] of the whole source."""

    def __init__(self, source: Source, classes: Sequence[int]):
        new = np.full(max(int(source.label.max()), *classes) + 1, -1, np.int32)
        new[list(classes)] = np.arange(len(classes))
        self._source = source
        self._rows = np.flatnonzero(new[source.label] >= 0)
        self.label = new[source.label[self._rows]]
        self.classes = tuple(source.classes[c] for c in classes)
        self.shape: tuple[int, ...] = source.shape
        self.latent_space = source.latent_space
        self.digest = source.digest  # which classes, the config says
        self.draw = source.draw

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        return {**self._source[self._rows[index]], "label": self.label[index]}


def build_sources(config: Config) -> Sequence[Source]:
    """The training examples that the config names; several where resolutions are mixed.

    Raises:
      ConfigError: if data are missing or disagree with the config.
    """
    data = config.data
    names = data.path or (data.source,)
    sources: Sequence[Source] = [_build(data, folder) for folder in names]
    if data.classes:
        for name, source in zip(names, sources, strict=True):
            absent = sorted(set(data.classes) - set(source.label.tolist()))
            if absent:
                raise ConfigError(
                    f"config.data.classes has {absent[0]}, of which {name!r} has no example; "
                    f"its labels span {source.label.min()} to {source.label.max()}"
                )
        sources = [ClassSubset(source, data.classes) for source in sources]
    for name, source in zip(names, sources, strict=True):
        _check(config, name, source, mixed=len(sources) > 1)
    for name, source in zip(names, sources, strict=True):
        if source.classes != sources[0].classes:
            raise ConfigError(
                f"config.data.path mixes {names[0]!r} with {name!r}, which has other classes; "
                "allowed: sets with the same classes in the same order"
            )
    spaces = [source.latent_space for source in sources]
    for name, space in zip(names, spaces, strict=True):
        if not same_latents(space, spaces[0]):
            raise ConfigError(
                f"config.data.path mixes {names[0]!r} with {name!r}, whose latents are of another "
                "autoencoder or scaled otherwise; allowed: sets prepared alike, and "
                "latent_scaling 'autoencoder' (statistics differ between sets)"
            )
    return sources


def _build(data: DataConfig, folder: str) -> Source:
    match data.source:
        case "digits":
            names = tuple(str(digit) for digit in range(digits.NUM_CLASSES))
            return Pictures(*digits.load("train"), names)
        case "patches":
            return Pictures(*patches.load("train"), patches.CLASSES)
        case "prepared":
            prepared = Prepared(folder)
            space = latent_space(prepared.card, data.latent_scaling)
            if space is None:
                return Pictures(prepared, prepared.label, prepared.card.classes)
            return Latents(prepared, space)


def _check(config: Config, name: str, source: Source, *, mixed: bool) -> None:
    model = config.model
    if not len(source):
        raise ConfigError(f"data set {name!r} holds no examples; allowed: one or more")
    height, width, channels = source.shape
    if channels != model.channels:
        raise ConfigError(
            f"config.model.channels is {model.channels} but data set {name!r} has {channels}; "
            f"allowed: {channels}"
        )
    sizes = "multiples of patch_size" if mixed else f"{height}"
    if height != width or (height % model.patch_size if mixed else height != model.image_size):
        raise ConfigError(
            f"config.model.image_size is {model.image_size} with patch_size {model.patch_size} "
            f"but data set {name!r} has examples of {height}x{width}; allowed: {sizes}"
        )
    if config.data.classes and model.num_classes != len(config.data.classes):
        raise ConfigError(
            f"config.model.num_classes is {model.num_classes} with {len(config.data.classes)} of "
            f"config.data.classes; allowed: {len(config.data.classes)}"
        )
    low, high = int(source.label.min()), int(source.label.max())
    if low < 0 or high >= model.num_classes:
        raise ConfigError(
            f"config.model.num_classes is {model.num_classes} but the labels of data set {name!r} "
            f"span {low} to {high}; allowed: at least {high + 1}"
        )
