"""Where examples come from: random access to pictures or latents with labels."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dit_moe.autoencoder.latent_space import LatentSpace, same_latents
from dit_moe.config import ConfigError, DataConfig, ModelConfig
from dit_moe.config.data import SOURCES
from dit_moe.config.sizes import parse_size, size_text
from dit_moe.data import digits, patches
from dit_moe.data.pairs import Beside, Derived, derivation
from dit_moe.data.prepared import Card, Prepared, Split, latent_space, read_card
from dit_moe.data.source import Record, Source

Build = Callable[[DataConfig, Split], Mapping[str, Source]]
"""From the config and a split to the split's sources by the names that messages give them: one, or
several for mixed resolutions; none where a source has no such split."""


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
        new = np.full(max(int(source.label.max(initial=0)), *classes) + 1, -1, np.int32)
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


def register_source(name: str, build: Build, *, folders: bool = False) -> None:
    """Makes a data set known under a name, which `data.source` may then hold.

    Args:
      name: of the source.
      build: makes it.
      folders: whether `data.path` names its folders, and `data.validation_path` those of its
        held-out data; without folders both are empty.
    """
    SOURCES[name] = folders
    _BUILD[name] = build


def build_sources(data: DataConfig, model: ModelConfig, split: Split = "train") -> Sequence[Source]:
    """The examples that the config names; several where resolutions are mixed.

    Args:
      data: which they are.
      model: what they have to fit.
      split: "validation": what is held out, and none where nothing is.

    Raises:
      ConfigError: if data are missing or disagree with the config.
    """
    found = _in_pairs(data, _BUILD[data.source](data, split), split)
    if data.classes:
        for name, source in found.items():
            absent = sorted(set(data.classes) - set(source.label.tolist()))
            if absent and split == "train":
                raise ConfigError(
                    f"config.data.classes has {absent[0]}, of which {name!r} has no example; "
                    f"its labels span {source.label.min()} to {source.label.max()}"
                )
        found = {name: ClassSubset(source, data.classes) for name, source in found.items()}
    for name, source in found.items():
        _check(data, model, name, source, mixed=len(found) > 1)
    _check_alike(found)
    return list(found.values())


def source_of_run(data: DataConfig, model: ModelConfig, folders: Sequence[str] = ()) -> Source:
    """What a run learnt from; of mixed resolutions, the examples at the model's own.

    Args:
      data: of the run.
      model: of the run.
      folders: of a prepared set, where the data are no longer those of the config; empty: they are.

    Raises:
      ConfigError: they are missing or do not fit the model.
    """
    if folders:
        moved = dataclasses.replace(data, source="prepared", path=tuple(folders), mix_weights=())
        data = DataConfig(**dataclasses.asdict(moved))
    sources = build_sources(data, model)
    return next((s for s in sources if s.shape == model.image_shape), sources[0])


def check_heldout(sources: Sequence[Source], heldout: Sequence[Source]) -> None:
    """Checks that held-out data are of the kind that is trained on.

    Raises:
      ConfigError: they have other classes, or are other latents.
    """
    for source in heldout:
        if source.classes != sources[0].classes:
            raise ConfigError(
                "config.data.validation_path has other classes than the training data; allowed: "
                "sets with the same classes in the same order"
            )
        if not same_latents(source.latent_space, sources[0].latent_space):
            raise ConfigError(
                "config.data.validation_path has latents of another autoencoder than the training "
                "data, or scaled otherwise; allowed: sets prepared alike"
            )


def _check_alike(found: Mapping[str, Source]) -> None:
    for name, source in found.items():
        first, reference = next(iter(found.items()))
        if source.classes != reference.classes:
            raise ConfigError(
                f"config.data.path mixes {first!r} with {name!r}, which has other classes; "
                "allowed: sets with the same classes in the same order"
            )
    for name, source in found.items():
        first, reference = next(iter(found.items()))
        if not same_latents(source.latent_space, reference.latent_space):
            raise ConfigError(
                f"config.data.path mixes {first!r} with {name!r}, whose latents are of another "
                "autoencoder or scaled otherwise; allowed: sets prepared alike, and "
                "latent_scaling 'autoencoder' (statistics differ between sets)"
            )


def _digits(data: DataConfig, split: Split) -> Mapping[str, Source]:
    names = tuple(str(digit) for digit in range(digits.NUM_CLASSES))
    part = "train" if split == "train" else "heldout"
    return {data.source: Pictures(*digits.load(part), names)}


def _patches(data: DataConfig, split: Split) -> Mapping[str, Source]:
    part = "train" if split == "train" else "heldout"
    return {data.source: Pictures(*patches.load(part), patches.CLASSES)}


def _prepared(data: DataConfig, split: Split) -> Mapping[str, Source]:
    for folder in (*data.path, *data.validation_path) if data.flip else ():
        if not read_card(Path(folder)).mirrored:
            raise ConfigError(
                f"config.data.flip is True, but data set {folder!r} holds no latents of mirror "
                "images, since it was made of latents; allowed: --config.data.flip=False"
            )
    if split == "train":
        return {folder: _open(Prepared(folder), data.latent_scaling) for folder in data.path}
    if data.validation_path:
        # Channels are scaled by the statistics of what is trained on.
        like = Prepared(data.path[0]).card
        sets = {folder: Prepared(folder) for folder in data.validation_path}
        return {folder: _open(found, data.latent_scaling, like) for folder, found in sets.items()}
    holding = [folder for folder in data.path if read_card(Path(folder)).num_validation]
    return {f: _open(Prepared(f, "validation"), data.latent_scaling) for f in holding}


def _in_pairs(data: DataConfig, found: Mapping[str, Source], split: Split) -> Mapping[str, Source]:
    """The sources with pairs for images, where the config asks for them (`data.pair`)."""
    if data.pair is None:
        return found
    if data.pair == "folder":
        of_others = dataclasses.replace(data, path=data.pair_path, pair=None, pair_path=())
        others = _prepared(of_others, split).items()
        return {
            name: Beside(source, other, (name, folder))
            for (name, source), (folder, other) in zip(found.items(), others, strict=True)
        }
    for name, source in found.items():
        if source.latent_space is not None:
            raise ConfigError(
                f"config.data.pair is {data.pair!r}, but data set {name!r} holds latents; allowed: "
                "'folder', with the latents of the second images in config.data.pair_path"
            )
    return {
        name: Derived(source, derivation(data.pair, source.shape)) for name, source in found.items()
    }


def _open(prepared: Prepared, scaling: str, like: Card | None = None) -> Source:
    space = latent_space(prepared.card, scaling)
    if like is not None and space is not None and like.autoencoder == prepared.card.autoencoder:
        space = latent_space(like, scaling)
    if space is None:
        return Pictures(prepared, prepared.label, prepared.card.classes)
    return Latents(prepared, space)


_BUILD: dict[str, Build] = {}
register_source("digits", _digits)
register_source("patches", _patches)
register_source("prepared", _prepared, folders=True)


def _check(data: DataConfig, model: ModelConfig, name: str, source: Source, *, mixed: bool) -> None:
    if not len(source):
        raise ConfigError(f"data set {name!r} holds no examples; allowed: one or more")
    *sides, channels = source.shape
    if channels != model.channels:
        raise ConfigError(
            f"config.model.channels is {model.channels} but data set {name!r} has {channels}; "
            f"allowed: {channels}"
        )
    size = parse_size(sides)
    sizes = "multiples of patch_size" if mixed else size_text(size)
    if any(side % model.patch_size for side in sides) if mixed else size != model.image_size:
        raise ConfigError(
            f"config.model.image_size is {size_text(model.image_size)} with patch_size "
            f"{model.patch_size} but data set {name!r} has examples of "
            f"{'x'.join(map(str, sides))}; allowed: {sizes}"
        )
    if data.classes and model.num_classes != len(data.classes):
        raise ConfigError(
            f"config.model.num_classes is {model.num_classes} with {len(data.classes)} of "
            f"config.data.classes; allowed: {len(data.classes)}"
        )
    low, high = int(source.label.min()), int(source.label.max())
    if low < 0 or high >= model.num_classes:
        raise ConfigError(
            f"config.model.num_classes is {model.num_classes} but the labels of data set {name!r} "
            f"span {low} to {high}; allowed: at least {high + 1}"
        )
