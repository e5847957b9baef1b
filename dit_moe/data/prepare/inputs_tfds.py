"""TFDS data sets as an input, read without TensorFlow."""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import naming

from dit_moe.config import ConfigError
from dit_moe.data.array_records import RecordError, Records
from dit_moe.data.prepare.input import Entry, Input, listing_digest
from dit_moe.data.tfds_folder import INFO, TfdsFolder
from dit_moe.storage.colours import MODES
from dit_moe.storage.pictures import ImageError


@dataclass(frozen=True)
class _TfdsReader:
    folder: str
    split: str
    image: str
    label: str
    num_classes: int

    def read(self, entry: Entry) -> tuple[bytes | np.ndarray, int]:
        records = _records(self)
        try:
            record = records[int(entry.key)]
        except RecordError:
            raise ImageError("unreadable") from None
        label = int(record[self.label])
        if label < 0:
            raise ImageError("no label")  # test splits
        if label >= self.num_classes:
            raise ImageError("label past the classes")
        return record[self.image], label


@functools.lru_cache(maxsize=4)
def _records(reader: _TfdsReader) -> Records:
    return TfdsFolder(Path(reader.folder)).records(reader.split, (reader.image, reader.label))


def open_tfds(path: str, split: str) -> Input:
    """Lists one split; see `inputs.open_input`."""
    folder = path if Path(path).exists() else _tfds_folder(path)
    if not (Path(folder) / INFO).is_file():
        raise ConfigError(
            f"input {path!r} is not a TFDS data set; allowed: the folder that holds its "
            f"{INFO}, such as imagenet2012/5.1.0"
        )
    try:
        found = TfdsFolder(Path(folder).resolve())
    except ConfigError as error:
        raise ConfigError(f"input {path!r} cannot be read as a TFDS data set: {error}") from None
    image, label = _tfds_fields(path, found)
    classes = tuple(found.fields[label].names)
    reader = _TfdsReader(str(found.folder), split, image, label, len(classes))
    try:
        num_examples = len(found.records(split, (image, label)))
    except (KeyError, ValueError):
        raise ConfigError(
            f"split is {split!r}, which input {path!r} lacks; allowed: "
            f"{', '.join(sorted(found.splits))}, or a part such as train[:10%]"
        ) from None
    except OSError as error:
        raise ConfigError(f"input {path!r} {error}; prepare it again") from None
    # A record has no name of its own.
    entries = [Entry(f"{index:08d}", None) for index in range(num_examples)]
    lengths = {name: list(each.shard_lengths) for name, each in found.splits.items()}
    features = tfds.features.FeaturesDict(found.fields).to_json()
    digest = listing_digest([split, lengths, features, num_examples])
    return Input("tfds", entries, classes, digest, reader)


def _tfds_folder(name: str) -> str:
    """Where TFDS keeps a set that it has prepared."""
    if not re.fullmatch(r"\w+(/[\w.]+)*(:[\w.*]+)?", name):
        raise ConfigError(f"input {name!r} does not exist; allowed: a TFDS folder or name")
    try:
        # Of TFDS's own code: `tfds.builder` would also take whatever lies in its folder.
        dataset, settings = naming.parse_builder_name_kwargs(name)
        folder = tfds.builder_cls(str(dataset))(**settings).data_path
    except Exception:  # of many kinds
        raise ConfigError(
            f"input {name!r} is neither a folder nor a TFDS data set that can be opened; "
            "allowed: a name such as imagenet2012, or the folder that holds its dataset_info.json"
        ) from None
    if not folder.exists():
        raise ConfigError(
            f"input {name!r} has not been prepared in {str(folder)!r}; prepare it by "
            f"`tfds build {name} --file_format=array_record`"
        )
    return str(folder)


def _tfds_fields(path: str, folder: TfdsFolder) -> tuple[str, str]:
    """The names of the fields that hold the picture and its class."""

    def is_image(feature: Any) -> bool:
        if isinstance(feature, tfds.features.Image):
            return feature.np_dtype in (np.uint8, np.uint16)
        if not isinstance(feature, tfds.features.Tensor) or feature.np_dtype != np.uint8:
            return False
        shape: Any = feature.shape
        return len(shape) == 3 and shape[2] in MODES

    fields = folder.fields
    images = [name for name, feature in fields.items() if is_image(feature)]
    labels = [name for name, f in fields.items() if isinstance(f, tfds.features.ClassLabel)]
    for kind, names in (("image", images), ("label", labels)):
        if kind in names:
            names[:] = [kind]
        if len(names) != 1:
            found = ", ".join(folder.field_names) or "none"
            raise ConfigError(
                f"input {path!r} has {len(names)} fields that may be the {kind}; allowed: one, or "
                f"one named {kind!r} (its fields: {found})"
            )
    return images[0], labels[0]
