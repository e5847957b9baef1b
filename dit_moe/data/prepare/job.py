"""The work of preparing a data set as a list of shards, and what of it is done."""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic.dataclasses import dataclass as validated

from dit_moe.autoencoder.latent_space import AutoencoderCard
from dit_moe.config import ConfigError
from dit_moe.config.sizes import height_and_width, size_text
from dit_moe.data import prepared
from dit_moe.data.picture_files import printable
from dit_moe.data.prepare.input import Entry, Kind
from dit_moe.data.prepare.inputs import open_input
from dit_moe.data.prepared import Shard
from dit_moe.storage.colours import MODES
from dit_moe.storage.records import read_record, write_record

if TYPE_CHECKING:
    from dit_moe.autoencoder.loading import Loaded

PROGRESS = ".progress"


class PrepareError(RuntimeError):
    """The set cannot be finished; the message is one sentence for the user."""


@dataclass(frozen=True)
class Settings:
    """What is asked for."""

    source: Kind | Literal["auto"]
    input: str
    split: str
    output: Path
    name: str
    autoencoder: str | None
    """None: pictures are kept as they are."""
    dtype: Literal["float32", "bfloat16"]
    """What the autoencoder computes in."""
    image_size: int | tuple[int, int]
    """Of the crop in pixels: its side, or height and width."""
    batch_size: int
    """Pictures per device in one pass of the autoencoder."""
    images_per_shard: int
    validation_share: float = 0.0
    """Share of the pictures that are held out."""
    follow_links: bool = False
    """Of a folder: links are followed, wherever they lead."""
    channels: int | None = None
    """A key of `colours.MODES`; None: what goes with the input."""
    class_names: tuple[str, ...] = ()
    """What classes are called that the input only numbers; empty: by their numbers."""
    latent_scale: float | None = None
    """What ready-made latents were multiplied by; None: as the autoencoder says."""

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise ConfigError(
                f"validation_share is {self.validation_share}; allowed: 0 to less than 1"
            )
        for field in ("batch_size", "images_per_shard"):
            value = getattr(self, field)
            if value < 1:
                raise ConfigError(f"{field} is {value}; allowed: 1 or more")
        if self.channels not in (None, *MODES):
            raise ConfigError(f"channels is {self.channels}; allowed: {', '.join(map(str, MODES))}")
        scale = self.latent_scale
        if scale is not None and not 0 < scale < math.inf:
            raise ConfigError(f"latent_scale is {scale}; allowed: a number above 0")
        if str(self.output) != printable(str(self.output)):
            raise ConfigError(
                f"output is {str(self.output)!r}; allowed: a name in UTF-8, since array_record "
                "takes no other"
            )


@validated(frozen=True)
class Record:
    """Progress: a shard that is done."""

    shard: Shard
    rejected: tuple[tuple[str, str], ...]
    """Key and reason of the pictures that were left out."""


class Job:
    """The shards of one data set: each holds the pictures of `images_per_shard` entries.

    Those to train on come first, those that are held out after them.

    Raises:
      ConfigError: the input or the autoencoder cannot be used.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.input = open_input(
            settings.source,
            settings.input,
            settings.split,
            follow_links=settings.follow_links,
            class_names=settings.class_names,
        )
        self.loaded: Loaded | None = None
        self.autoencoder: AutoencoderCard | None = None
        self.channels = settings.channels or self.input.channels
        self.shape = (*height_and_width(settings.image_size), self.channels)
        if settings.autoencoder is not None:
            self._load_autoencoder(settings.autoencoder)
        self.latent_scale = self._latent_scale()
        self.fields = prepared.features(
            self.shape,
            self.input.classes,
            latents=self.autoencoder is not None,
            mirrored=self.input.latents is None,
        )
        self._split_entries()
        self.num_train_shards = self._shards(self._entries["train"])
        self.num_shards = self.num_train_shards + self._shards(self._entries["validation"])

    def _split_entries(self) -> None:
        share, entries = self.settings.validation_share, self.input.entries
        self._entries: dict[prepared.Split, list[Entry]] = {"train": [], "validation": []}
        for entry in entries:
            out = share > 0 and _place(entry.key) < share
            self._entries["validation" if out else "train"].append(entry)
        for split, part in self._entries.items():
            if share > 0 and entries and not part:
                number, other = ("all", "smaller") if split == "train" else ("none", "larger")
                raise ConfigError(
                    f"validation_share is {share}, which holds out {number} of {len(entries)} "
                    f"pictures; allowed: a {other} share"
                )

    def _shards(self, entries: Sequence[Entry]) -> int:
        return -(-len(entries) // self.settings.images_per_shard)

    def _load_autoencoder(self, source: str) -> None:
        from dit_moe.autoencoder.loading import load  # JAX takes seconds to import

        self.loaded = loaded = load(source, self.settings.dtype)
        config, sides = loaded.config, height_and_width(self.settings.image_size)
        if config.in_channels != 3:
            raise ConfigError(
                f"autoencoder {source!r} takes {config.in_channels} channels; allowed: 3"
            )
        if self.channels != 3:
            raise ConfigError(
                f"channels is {self.channels} with autoencoder {source!r}; allowed: 3, which is "
                "what it takes, or autoencoder none"
            )
        if any(side % config.downsampling for side in sides):
            raise ConfigError(
                f"image_size is {size_text(self.settings.image_size)}; allowed with this "
                f"autoencoder: multiples of {config.downsampling}"
            )
        height, width = (side // config.downsampling for side in sides)
        self.shape = (height, width, config.latent_channels)
        self.autoencoder = AutoencoderCard(
            loaded.source, loaded.sha256, config.scaling_factor, config.shift_factor or 0.0
        )
        if self.input.latents is not None:
            self.autoencoder = dataclasses.replace(
                self.autoencoder, pixel_range=self.input.latents.pixel_range
            )

    def _latent_scale(self) -> tuple[float, float]:
        """What ready-made latents are divided by, and what is added then, to unscale them.

        Raises:
          ConfigError: they are not of the autoencoder, or of another size.
        """
        latents, scale, settings = self.input.latents, self.settings.latent_scale, self.settings
        if scale is not None and (latents is None or not latents.scaled):
            raise ConfigError(
                f"latent_scale is {scale} for an input of {self.input.kind}; allowed: with fast_dit"
            )
        if latents is None:
            return 1.0, 0.0
        if self.autoencoder is None:
            raise ConfigError(
                f"input {settings.input!r} holds latents ({self.input.kind}); allowed with "
                "autoencoder: the one that made them, which decodes samples"
            )
        if self.input.entries and latents.shape != self.shape:
            raise ConfigError(
                f"input {settings.input!r} has latents of {'x'.join(map(str, latents.shape))}, but "
                f"this image_size and autoencoder give {'x'.join(map(str, self.shape))}; allowed: "
                "the image_size of their pictures, and the autoencoder that made them"
            )
        if scale is not None or not latents.scaled:
            return scale or 1.0, 0.0
        return self.autoencoder.scaling_factor, self.autoencoder.shift_factor

    def identity(self) -> dict[str, object]:
        """All that decides what the files hold."""
        settings = self.settings
        identity: dict[str, object] = {
            "name": settings.name,
            "source": self.input.kind,
            "listing": self.input.digest,
            "entries": len(self.input.entries),
            "image_size": settings.image_size
            if isinstance(settings.image_size, int)
            else size_text(settings.image_size),
            "images_per_shard": settings.images_per_shard,
            "autoencoder": self.autoencoder and self.autoencoder.sha256,
        }
        if self.channels != 3:
            identity["channels"] = self.channels
        if settings.class_names:
            identity["class_names"] = list(settings.class_names)
        if settings.validation_share:
            identity["validation_share"] = settings.validation_share
        if self.input.latents is not None:
            identity["latent_scale"] = list(self.latent_scale)
        if settings.follow_links:
            identity["follow_links"] = True
        if self.input.kind == "tfds":
            identity["split"] = settings.split
        if self.autoencoder is not None and self.input.latents is None:
            identity |= {"dtype": settings.dtype, "batch_size": settings.batch_size}
        return identity

    def entries(self, index: int) -> Sequence[Entry]:
        """The entries of one shard."""
        number = self.settings.images_per_shard
        split, index, _ = self._locate(index)
        return self._entries[split][index * number : (index + 1) * number]

    def shard_path(self, index: int) -> Path:
        """Where a shard belongs."""
        split, index, total = self._locate(index)
        return self.settings.output / prepared.shard_name(self.settings.name, index, total, split)

    def _locate(self, index: int) -> tuple[prepared.Split, int, int]:
        """The split of a shard, its number there, and how many there are."""
        train = self.num_train_shards
        if index < train:
            return "train", index, train
        return "validation", index - train, self.num_shards - train

    def record_path(self, index: int) -> Path:
        """Where the record lies that says a shard is done."""
        return self.settings.output / PROGRESS / f"{index:05d}.json"

    def record(self, index: int) -> Record | None:
        """The record of a shard, or None if the shard is still to be made."""
        try:
            record = read_record(self.record_path(index), Record)
            size = self.shard_path(index).stat().st_size
        except (FileNotFoundError, ConfigError):
            return None
        return record if size == record.shard.num_bytes else None

    def write_record(self, index: int, record: Record) -> None:
        """Says that a shard is done."""
        write_record(self.record_path(index), record)


def _place(key: str) -> float:
    """From 0 to 1, by the key alone: a picture stays on its side in any set that it is part of."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
