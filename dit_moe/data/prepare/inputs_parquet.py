"""Parquet files as an input, in the form of the Hugging Face hub's sets of pictures.

A column holds the bytes of image files, as struct<bytes, path> or alone, another one whole numbers;
their names are in the schema's metadata. https://huggingface.co/docs/datasets/image_dataset
"""

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dit_moe.config import ConfigError
from dit_moe.data import picture_files
from dit_moe.data.prepare.input import Entry, Input, listing_digest
from dit_moe.data.prepare.shards import MAX_CLASSES, find_shards, split_key
from dit_moe.storage.pictures import ImageError

SUFFIX = ".parquet"
_MAX_GROUP = 2**32  # bytes of the pictures in a row group, which is read at once
_NO_LABEL = -1


@dataclass(frozen=True)
class _Columns:
    """What the schema of a file says."""

    image: str
    label: str
    names: tuple[str, ...] | None
    """Of the labels 0, 1, ...; None: it gives none."""


@dataclass(frozen=True)
class _ParquetReader:
    root: Path
    image: str
    num_classes: int

    def read(self, entry: Entry) -> tuple[bytes, int]:
        assert entry.label is not None
        assert entry.place is not None
        if entry.label == _NO_LABEL:
            raise ImageError("no label")
        if not 0 <= entry.label < self.num_classes:
            raise ImageError("label past the classes")
        group, row = entry.place
        try:
            column = _group(self.root / split_key(entry.key, SUFFIX)[0], group, self.image)
            value = column[row].as_py()
        except Exception:  # damaged files raise almost anything
            raise ImageError("unreadable") from None
        data = value["bytes"] if isinstance(value, dict) else value
        if data is None:
            raise ImageError("no bytes, but a path")
        if len(data) > picture_files.MAX_BYTES:
            raise ImageError("file too large")
        return data, entry.label


@functools.lru_cache(maxsize=2)
def _group(path: Path, group: int, image: str) -> Any:
    """A column of one row group: what is in memory at once."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        return file.read_row_group(group, [image], use_threads=False).column(0)


def open_parquet(path: str, split: str) -> Input:
    """Lists the rows of all files; see `inputs.open_input`."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(
            f"input {path!r} is parquet, which needs pyarrow: pip install 'dit-moe[parquet]'"
        ) from None
    shards = find_shards(path, SUFFIX, split)
    entries: list[Entry] = []
    columns = None
    for name in tqdm(shards.names, desc="listing", unit="file", delay=2, leave=False):
        try:
            with pyarrow.parquet.ParquetFile(shards.root / name) as file:
                found = _columns(name, file.schema_arrow)
                columns = columns or found
                if found != columns:
                    raise ConfigError(
                        f"input {name!r} has other columns or classes than {shards.names[0]!r}; "
                        "allowed: files of one set"
                    )
                entries += _entries(name, shards.root / name, file, columns)
        except ConfigError:
            raise
        except Exception as error:  # damaged files raise almost anything
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ConfigError(f"input {name!r} cannot be read as parquet: {reason}") from None
    assert columns is not None
    most = max((entry.label for entry in entries if entry.label is not None), default=-1)
    count = len(columns.names) if columns.names else most + 1
    if count > MAX_CLASSES:
        raise ConfigError(f"input {path!r} has {count:,} classes; allowed: {MAX_CLASSES:,}")
    classes = columns.names or tuple(str(number) for number in range(count))
    sizes = zip(shards.names, shards.sizes(), strict=True)
    digest = listing_digest([classes, columns.image, *entries, *sizes])
    reader = _ParquetReader(shards.root, columns.image, len(classes))
    return Input("parquet", entries, classes, digest, reader)


def _entries(name: str, path: Path, file: Any, columns: _Columns) -> Iterator[Entry]:
    first = 0
    for group in range(file.num_row_groups):
        about = file.metadata.row_group(group)
        num_bytes = sum(
            about.column(i).total_uncompressed_size
            for i in range(about.num_columns)
            if about.column(i).path_in_schema.partition(".")[0] == columns.image
        )
        if num_bytes > _MAX_GROUP:
            raise ConfigError(
                f"input {name!r} has a row group with {num_bytes:,} bytes of pictures, which are "
                f"read at once; allowed: {_MAX_GROUP:,} (write it with a smaller row_group_size)"
            )
        # A picture has a byte or more, packed or not.
        if about.num_rows > max(num_bytes, path.stat().st_size):
            raise ConfigError(f"input {name!r} is too short for the rows that it says it has")
        label = file.read_row_group(group, [columns.label], use_threads=False).column(0)
        label_N = label.cast("int64").fill_null(_NO_LABEL).to_numpy()
        for row, number in enumerate(np.maximum(label_N, _NO_LABEL).tolist()):
            yield Entry(f"{name}/{first + row:08d}", number, (group, row))
        first += len(label_N)


def _columns(name: str, schema: Any) -> _Columns:
    from pyarrow import types

    def is_bytes(kind: Any) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    def is_image(kind: Any) -> bool:
        if types.is_struct(kind):
            place = kind.get_field_index("bytes")
            return place >= 0 and is_bytes(kind.field(place).type)
        return is_bytes(kind)

    told = _class_names(name, schema)
    images = [field.name for field in schema if is_image(field.type)]
    integers = [field.name for field in schema if types.is_integer(field.type)]
    labels = [column for column in integers if column in told] or integers
    image = _one(name, schema, "image", images)
    label = _one(name, schema, "label", labels)
    return _Columns(image, label, told.get(label))


def _one(name: str, schema: Any, kind: str, found: list[str]) -> str:
    if kind in found:
        return kind
    if len(found) != 1:
        what = "the bytes of image files" if kind == "image" else "whole numbers"
        columns = ", ".join(f"{field.name} {field.type!s:.60}" for field in schema)
        raise ConfigError(
            f"input {name!r} has {len(found)} columns that may be the {kind}; allowed: one of "
            f"{what}, or one named {kind!r} (its columns: {columns})"
        )
    return found[0]


def _class_names(name: str, schema: Any) -> dict[str, tuple[str, ...]]:
    """The names of the classes of those columns of which the metadata tell any."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    try:
        features = json.loads(text)["info"]["features"]
        found = {
            column: tuple(feature["names"])
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
        if not all(isinstance(each, str) for names in found.values() for each in names):
            raise ValueError("a name is no text")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"input {name!r} has metadata of the Hugging Face hub that cannot be read "
            f"({type(error).__name__}); allowed: those that the datasets package writes, or none"
        ) from None
    return found
