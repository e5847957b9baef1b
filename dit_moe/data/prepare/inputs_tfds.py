"""TFDS data sets as an input, read without TensorFlow."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from dit_moe.config import ConfigError
from dit_moe.data.prepare.decode import ImageError
from dit_moe.data.prepare.inputs import Entry, Input, listing_digest


@dataclass(frozen=True)
class _TfdsReader:
    folder: str
    split: str
    image: str
    label: str
    encoded: bool
    """Images are files, not arrays."""

    def read(self, entry: Entry) -> tuple[bytes | np.ndarray, int]:
        records = _records(self)
        try:
            record = records[int(entry.key)]
        except Exception:  # whatever its parser makes of damaged bytes
            raise ImageError("unreadable") from None
        label = int(record[self.label])
        if label < 0:
            raise ImageError("no label")  # test splits
        return record[self.image], label


@functools.lru_cache(maxsize=4)
def _records(reader: _TfdsReader) -> Sequence[dict[str, Any]]:
    decoders = {reader.image: tfds.decode.SkipDecoding()} if reader.encoded else None
    builder: Any = tfds.builder_from_directory(reader.folder)  # pyright: ignore
    return builder.as_data_source(reader.split, decoders=decoders)


def open_tfds(path: str, split: str) -> Input:
    """Lists one split; see `inputs.open_input`."""
    folder = path if Path(path).exists() else _tfds_folder(path)
    if not (Path(folder) / "dataset_info.json").is_file():
        raise ConfigError(
            f"input {path!r} is not a TFDS data set; allowed: the folder that holds its "
            "dataset_info.json, such as imagenet2012/5.1.0"
        )
    try:
        info: Any = tfds.builder_from_directory(folder).info  # pyright: ignore
        features, stored = info.features, info.file_format
    except Exception as error:  # of many kinds
        message = str(error).strip().partition("\n")[0]
        raise ConfigError(f"input {path!r} cannot be read as a TFDS data set: {message}") from None
    if stored != tfds.core.FileFormat.ARRAY_RECORD:
        name = info.full_name.partition("/")[0]
        raise ConfigError(
            f"input {path!r} is stored as {stored.value if stored else 'unknown files'}; allowed: "
            "array_record, which needs no TensorFlow to read: prepare it again by "
            f"`tfds build {name} --file_format=array_record`"
        )
    image, label = _tfds_fields(path, features)
    encoded = isinstance(features[image], tfds.features.Image)
    reader = _TfdsReader(str(Path(folder).resolve()), split, image, label, encoded)
    try:
        part = info.splits[split]
    except (KeyError, ValueError):
        raise ConfigError(
            f"split is {split!r}, which input {path!r} lacks; allowed: "
            f"{', '.join(sorted(info.splits))}, or a part such as train[:10%]"
        ) from None
    missing = [name for name in part.filenames if not (Path(folder) / name).is_file()]
    if missing:
        raise ConfigError(f"input {path!r} lacks the file {missing[0]!r}; prepare it again")
    # A record has no name of its own.
    entries = [Entry(f"{index:08d}", None) for index in range(part.num_examples)]
    lengths = {name: list(each.shard_lengths) for name, each in info.splits.items()}
    digest = listing_digest([split, lengths, features.to_json(), part.num_examples])
    return Input("tfds", entries, tuple(features[label].names), digest, reader)


def _tfds_folder(name: str) -> str:
    """Where TFDS keeps a set that it has prepared."""
    if not re.fullmatch(r"\w+(/[\w.]+)*(:[\w.*]+)?", name):
        raise ConfigError(f"input {name!r} does not exist; allowed: a TFDS folder or name")
    try:
        folder = tfds.builder(name).data_path
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


def _tfds_fields(path: str, features: Any) -> tuple[str, str]:
    """The names of the fields that hold the picture and its class."""

    def is_image(feature: Any) -> bool:
        if isinstance(feature, tfds.features.Image):
            return feature.np_dtype in (np.uint8, np.uint16)
        if not isinstance(feature, tfds.features.Tensor) or feature.np_dtype != np.uint8:
            return False
        shape: Any = feature.shape
        return len(shape) == 3 and shape[2] in (1, 3, 4)

    images = [name for name, feature in features.items() if is_image(feature)]
    labels = [name for name, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    for kind, names in (("image", images), ("label", labels)):
        if kind in names:
            names[:] = [kind]
        if len(names) != 1:
            found = ", ".join(sorted(features)) or "none"
            raise ConfigError(
                f"input {path!r} has {len(names)} fields that may be the {kind}; allowed: one, or "
                f"one named {kind!r} (its fields: {found})"
            )
    return images[0], labels[0]
