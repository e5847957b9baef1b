"""Prepared data sets: TFDS folders of array_record files with images or latents, and their card.

`tfds.builder_from_directory(folder).as_data_source("train")` reads one without this package.
A set may hold examples out, as the split "validation". Nothing here needs TensorFlow.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from pydantic.dataclasses import dataclass
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from dit_moe.autoencoder.latent_space import AutoencoderCard, LatentSpace
from dit_moe.config import ConfigError
from dit_moe.config.rules import RULES
from dit_moe.config.sizes import ImageSize
from dit_moe.data.array_records import RecordError
from dit_moe.data.tfds_folder import FEATURES, INFO, TfdsFolder
from dit_moe.storage.files import atomic, sha256
from dit_moe.storage.records import check_format, read_json, read_record, write_record

CARD = "prepared.json"
Split = Literal["train", "validation"]
FORMAT = 1
"""The format of prepared sets: goes up when their records or their card mean something else. A card
without a number is of format 1."""
_LABELS = {"train": "labels.npy", "validation": "labels-validation.npy"}
_METADATA = (INFO, FEATURES)


@dataclass(frozen=True, config=RULES)
class Card:
    """What a prepared set is: `prepared.json`, written last, so that a set with a card is whole."""

    name: str
    image_size: ImageSize
    """Side of the square pictures in pixels, or height and width."""
    shape: tuple[int, int, int]
    """What an example has: [H, W, C] of the picture, or [h, w, c] of its latent."""
    classes: tuple[str, ...]
    """Names; a label is a place in this list."""
    num_examples: int
    """To train on."""
    autoencoder: AutoencoderCard | None
    """None: the set holds pictures."""
    latent_mean: tuple[float, ...] | None
    """[c] mean of the sampled, unscaled latents, per channel; None for pictures."""
    latent_std: tuple[float, ...] | None
    """[c] their standard deviation."""
    sha256: dict[str, str]
    """Hash of every other file of the set, by name: records, labels and TFDS's metadata."""
    num_validation: int = 0
    """Examples that are held out, of the same kind."""
    mirrored: bool = True
    """Whether there are latents of mirror images; pictures can always be mirrored."""
    format: int = FORMAT

    def digest(self, split: Split) -> str:
        """The same for splits of the same records."""
        records = [item for item in self.sha256.items() if f"-{split}.array_record-" in item[0]]
        return hashlib.sha256(json.dumps(sorted(records)).encode()).hexdigest()


@dataclass(frozen=True, config=RULES)
class Shard:
    """What one array_record file holds, for the card. Plain numbers, to be stored as JSON."""

    file: str
    sha256: str
    num_bytes: int
    labels: tuple[int, ...]
    """One a record."""
    moments: tuple[tuple[float, ...], ...]
    """Latents: `[3][c]` sums over records, flips and positions of the posterior's mean, of its
    square, and of its variance. Pictures: empty."""


def latent_space(card: Card, scaling: str) -> LatentSpace | None:
    """How latents of a prepared set are scaled (`DataConfig.latent_scaling`); None for pictures."""
    if card.autoencoder is None:
        return None
    channels = card.shape[-1]
    if scaling == "per_channel":
        assert card.latent_mean is not None
        assert card.latent_std is not None
        return LatentSpace(card.autoencoder, card.latent_mean, card.latent_std)
    shift, std = card.autoencoder.shift_factor, 1 / card.autoencoder.scaling_factor
    return LatentSpace(card.autoencoder, (shift,) * channels, (std,) * channels)


def features(
    shape: tuple[int, int, int], classes: Sequence[str], *, latents: bool, mirrored: bool = True
) -> tfds.features.FeaturesDict:
    """The fields of a record.

    Pictures: `image` uint8 [H, W, C]. Latents: `mean` and `log_variance` of the autoencoder's
    posterior, float16 [2, h, w, c], of the picture (0) and of its mirror image (1), or [1, h, w, c]
    where that is not `mirrored`. Both: `label`, and `key`, which names the picture in its source.
    """

    def array(dtype: type[np.generic], *shape: int) -> tfds.features.Tensor:
        # Raw bytes: a list of floats would be parsed one by one.
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")

    fields: dict[str, tfds.features.FeatureConnector] = {
        "label": tfds.features.ClassLabel(names=list(classes)),
        "key": tfds.features.Text(),
    }
    if latents:
        views = 1 + mirrored
        fields["mean"] = array(np.float16, views, *shape)
        fields["log_variance"] = array(np.float16, views, *shape)
    else:
        fields["image"] = array(np.uint8, *shape)
    return tfds.features.FeaturesDict(fields)


def shard_name(name: str, index: int, total: int, split: Split = "train") -> str:
    """The file name that TFDS gives to a shard, of so many of its split."""
    return f"{name}-{split}.array_record-{index:05d}-of-{total:05d}"


def write_shard(
    path: Path, fields: tfds.features.FeaturesDict, examples: Iterable[Mapping[str, object]]
) -> Shard:
    """Writes one array_record file; it is whole or absent. The same examples give the same bytes.

    Args:
      path: its place, named by `shard_name`.
      fields: from `features`.
      examples: values for every field. `label` is a number.
    """
    serializer = ExampleSerializer(fields.get_serialized_info())  # pyright: ignore[reportArgumentType]
    labels: list[int] = []
    moments = None
    with atomic(path) as temporary:
        # One record a group: batches are read in random order.
        writer = ArrayRecordWriter(str(temporary), "group_size:1")
        for example in examples:
            message = serializer.get_tf_example(fields.encode_example(example))
            # Else the order of fields would differ from process to process.
            writer.write(message.SerializeToString(deterministic=True))
            labels.append(int(example["label"]))  # pyright: ignore[reportArgumentType]
            if "mean" in example:
                moments = _sums(example) + (0 if moments is None else moments)
        writer.close()
        digest, num_bytes = sha256(temporary), temporary.stat().st_size
    sums = () if moments is None else tuple(tuple(map(float, row)) for row in moments)
    return Shard(path.name, digest, num_bytes, tuple(labels), sums)


def _sums(example: Mapping[str, object]) -> np.ndarray:
    # Of what is stored, and in float64: float16 squares overflow.
    mean = np.asarray(example["mean"], np.float16).astype(np.float64)
    variance = np.exp(np.asarray(example["log_variance"], np.float16).astype(np.float64))
    return np.stack([part.sum(axis=(0, 1, 2)) for part in (mean, mean**2, variance)])


def finish(
    folder: Path,
    *,
    name: str,
    image_size: int | tuple[int, int],
    shape: tuple[int, int, int],
    classes: Sequence[str],
    autoencoder: AutoencoderCard | None,
    shards: Sequence[Shard],
    description: str,
    validation: Sequence[Shard] = (),
    mirrored: bool = True,
) -> Card:
    """Makes the folder of finished shards a data set: TFDS's metadata, the labels, the card.

    Statistics of latents are those of the `shards` to train on, not of the `validation` ones.
    """
    fields = features(shape, classes, latents=autoencoder is not None, mirrored=mirrored)
    splits: dict[Split, Sequence[Shard]] = {"train": shards}
    if validation:
        splits["validation"] = validation
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder),
        features=fields,
        split_infos=[_split_info(folder, name, *item) for item in splits.items()],
        description=description,
        check_data=False,  # the check needs TensorFlow; `verify` is ours
    )
    for split, parts in splits.items():
        label_N = np.asarray([label for shard in parts for label in shard.labels], np.int32)
        with atomic(folder / _LABELS[split]) as temporary:
            np.save(temporary, label_N)
    beside = [*(_LABELS[split] for split in splits), *_METADATA]
    mean, std = _latent_statistics(shards, (1 + mirrored) * shape[0] * shape[1])
    card = Card(
        name=name,
        image_size=image_size,
        shape=shape,
        classes=tuple(classes),
        num_examples=sum(len(shard.labels) for shard in shards),
        num_validation=sum(len(shard.labels) for shard in validation),
        mirrored=mirrored,
        autoencoder=autoencoder,
        latent_mean=mean,
        latent_std=std,
        sha256={shard.file: shard.sha256 for shard in (*shards, *validation)}
        | {file: sha256(folder / file) for file in beside},
    )
    write_record(folder / CARD, card)
    return card


def _split_info(
    folder: Path, name: str, split: Split, shards: Sequence[Shard]
) -> tfds.core.SplitInfo:
    template = tfds.core.ShardedFileTemplate(
        data_dir=epath.Path(folder), dataset_name=name, split=split, filetype_suffix="array_record"
    )
    return tfds.core.SplitInfo(
        name=split,
        shard_lengths=[len(shard.labels) for shard in shards],
        num_bytes=sum(shard.num_bytes for shard in shards),
        filename_template=template,
    )


def _latent_statistics(
    shards: Sequence[Shard], positions: int
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and standard deviation per channel, by the law of total variance."""
    sums = [np.asarray(shard.moments) for shard in shards if shard.moments]
    if not sums:
        return None, None
    number = positions * sum(len(shard.labels) for shard in shards)
    mean, square, variance = np.sum(sums, axis=0) / number
    return tuple(mean.tolist()), tuple(np.sqrt(square - mean**2 + variance).tolist())


class Prepared:
    """Random access to the records of a prepared set.

    Args:
      folder: of the set.
      split: "validation" for a set whose card says that it holds examples out.

    Raises:
      ConfigError: the folder is not a whole prepared set.
    """

    def __init__(self, folder: str | Path, split: Split = "train"):
        self.folder = Path(folder)
        self.card = read_card(self.folder)
        self._split: Split = split
        train = split == "train"
        self._number = self.card.num_examples if train else self.card.num_validation
        missing = [file for file in self.card.sha256 if not (self.folder / file).is_file()]
        if missing:
            raise ConfigError(
                f"data set {str(self.folder)!r} lacks {missing[0]} "
                f"({len(missing)} of {len(self.card.sha256)} files are missing); prepare it again"
            )
        try:
            self.label: np.ndarray = np.load(self.folder / _LABELS[split], allow_pickle=False)
            """[N] int32, of every record."""
            if self.label.ndim != 1 or self.label.dtype.kind not in "iu":
                raise ConfigError(
                    f"{_LABELS[split]} holds no list of whole numbers; prepare it again"
                )
            stored, latents = TfdsFolder(self.folder), self.card.autoencoder is not None
            absent = {*features(self.card.shape, (), latents=latents)} - {*stored.fields}
            if absent:
                raise ConfigError(f"its records lack {', '.join(sorted(absent))}; prepare it again")
            self._records = stored.records(split)
            if self._number:
                self._records[self._number - 1]
        except ConfigError as error:
            raise ConfigError(f"data set {str(self.folder)!r} cannot be read: {error}") from None
        except Exception as error:  # damaged files raise almost anything
            raise ConfigError(
                f"data set {str(self.folder)!r} is damaged ({type(error).__name__}); "
                "python -m dit_moe.data.prepare tells which file if it is called as before"
            ) from error
        if not len(self._records) == len(self.label) == self._number:
            raise ConfigError(
                f"data set {str(self.folder)!r} has {len(self._records)} records and "
                f"{len(self.label)} labels for {self._number} examples; prepare it again"
            )

    @property
    def digest(self) -> str:
        """The same for sets of the same records."""
        return self.card.digest(self._split)

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """The fields of one record, as `features` describes them.

        Raises:
          RecordError: it cannot be read.
        """
        try:
            return self._records[index]
        except RecordError as error:
            raise RecordError(
                f"{error}; if the file is damaged, remove the folder and prepare it again: its "
                "records will be the same"
            ) from error


def read_card(folder: Path) -> Card:
    """The card of a prepared set.

    Raises:
      ConfigError: there is none, it is of another format than `FORMAT`, or it cannot be read.
    """
    path = folder / CARD
    if not path.is_file():
        raise ConfigError(
            f"data set {str(folder)!r} has no {CARD}; allowed: a folder that "
            "python -m dit_moe.data.prepare has finished"
        )
    values = read_json(path)
    if isinstance(values, dict):
        check_format(path, values.get("format", 1), FORMAT, "prepare the set again")
    return read_record(path, Card)


def verify(folder: Path) -> list[str]:
    """What is wrong with a finished set: files that are missing or whose SHA-256 differs."""
    wrong = []
    for file, digest in read_card(folder).sha256.items():
        path = folder / file
        if not path.is_file():
            wrong.append(f"{file} is missing")
        elif sha256(path) != digest:
            wrong.append(f"{file} has changed since it was written")
    return wrong
