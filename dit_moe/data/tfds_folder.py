"""TFDS folders, opened without TensorFlow and without running anything that they name.

TFDS itself imports whatever Python class `features.json` or `dataset_info.json` asks for.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from etils import epath
from google.protobuf import json_format
from tensorflow_datasets.core import dataset_info
from tensorflow_datasets.core.proto import feature_pb2

from dit_moe.config import ConfigError
from dit_moe.data.array_records import Records

INFO, FEATURES = "dataset_info.json", "features.json"

_CORE = "tensorflow_datasets.core.features"
_DICT = f"{_CORE}.features_dict.FeaturesDict"
# What is read; of other fields nothing is made.
_READ = {
    f"{_CORE}.class_label_feature.ClassLabel": "class_label",
    f"{_CORE}.image_feature.Image": "image",
    f"{_CORE}.scalar.Scalar": "tensor",
    f"{_CORE}.tensor_feature.Tensor": "tensor",
    f"{_CORE}.text_feature.Text": "text",
}
_MAX_CLASSES = 2**20
_FILE_NAMES = r"([^{}]|{[A-Z_]+})*"


class TfdsFolder:
    """One version of a data set.

    Raises:
      ConfigError: it cannot be read; the message is a reason without the folder's name.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            info: Any = dataset_info.read_proto_from_builder_dir(folder)
            stored = info.file_format or "tfrecord"
            if stored != "array_record":
                raise ConfigError(
                    f"it is stored as {stored}; allowed: array_record, which needs no TensorFlow "
                    f"to read: prepare it again by `tfds build {info.name} "
                    "--file_format=array_record`"
                )
            for split in info.splits:
                # TFDS formats it by Python's rules, which know how to fill a memory.
                if not re.fullmatch(_FILE_NAMES, split.filepath_template):
                    raise ConfigError(
                        f"its files are named {split.filepath_template!r}; allowed: TFDS's names, "
                        "such as {DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
                    )
            self.field_names, self.fields = _fields(folder)
            template = tfds.core.ShardedFileTemplate(
                dataset_name=info.name,
                data_dir=epath.Path(folder),
                filetype_suffix=stored,
            )
            self.splits: Any = tfds.core.SplitDict.from_proto(info.splits, template)
        except ConfigError:
            raise
        except Exception as error:  # of many kinds, on damaged or hostile files
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(reason[:300]) from None

    def records(self, split: str, fields: Sequence[str] | None = None) -> Records:
        """The examples of a split or a part of it; pictures that are files stay bytes.

        Args:
          split: such as "train" or "train[:10%]".
          fields: which are read; all that can be, if None.

        Raises:
          KeyError, ValueError: there is no such split.
          OSError: a file of it is missing or cut; the message begins with a verb.
        """
        chosen = {name: self.fields[name] for name in fields or self.fields}
        files = {
            name: tfds.decode.SkipDecoding()
            for name, feature in chosen.items()
            if isinstance(feature, tfds.features.Image)
        }
        parts = self.splits[split].file_instructions
        for part in parts:
            path = Path(part.filename)
            if not path.is_file():
                raise FileNotFoundError(f"lacks the file {path.name!r}")
            if part.examples_in_shard > path.stat().st_size:
                raise OSError(f"has a file too short for its records, {path.name!r}")
        return Records(parts, tfds.features.FeaturesDict(chosen), files)


def _fields(folder: Path) -> tuple[list[str], dict[str, Any]]:
    """The names of all fields, and those that can be read."""
    text = (folder / FEATURES).read_text(encoding="utf-8-sig")
    found = json_format.Parse(text, feature_pb2.Feature())  # pyright: ignore[reportAttributeAccessIssue]
    if found.python_class_name != _DICT or found.WhichOneof("content") != "features_dict":
        raise ConfigError(
            f"{FEATURES} names {found.python_class_name!r}; allowed: {_DICT}, since opening a data "
            "set runs no code of others"
        )
    for name, field in found.features_dict.features.items():
        if field.class_label.num_classes > _MAX_CLASSES:
            raise ConfigError(
                f"its field {name!r} has {field.class_label.num_classes:,} classes; allowed: up to "
                f"{_MAX_CLASSES:,}"
            )
    fields: dict[str, Any] = {
        name: tfds.features.FeatureConnector.from_proto(field)
        for name, field in found.features_dict.features.items()
        if _READ.get(field.python_class_name) == field.WhichOneof("content")
    }
    tfds.features.FeaturesDict(fields).load_metadata(str(folder), feature_name=None)
    return sorted(found.features_dict.features), fields
