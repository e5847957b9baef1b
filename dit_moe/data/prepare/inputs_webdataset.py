"""WebDataset's tar files as an input: nothing is unpacked to disk, and no pickle is read.

Members that agree up to the first dot of their names are one sample: its picture, its label, and
what is of no use here. https://github.com/webdataset/webdataset
"""

import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from tqdm import tqdm

from dit_moe.config import ConfigError
from dit_moe.data import picture_files
from dit_moe.data.picture_files import has_picture_name, is_visible, printable
from dit_moe.data.prepare.input import Entry, Input, listing_digest
from dit_moe.data.prepare.shards import MAX_CLASSES, find_shards, split_key
from dit_moe.storage.pictures import ImageError

SUFFIX = ".tar"
_LABELS = ("cls", "json", "txt")
_PICKLES = ("pyd", "pickle", "pkl", "pth", "pt")
_MOST_AT_ONCE = 2**20  # bytes of a header, or of a label
_LONGEST_NAME = 100
_NO_LABEL = -1

_Label = int | str
_Place = tuple[int, int]


class _Sample(NamedTuple):
    key: str
    """Of its picture, with the shard's name."""
    place: _Place
    """Offset and length of the picture in its shard."""
    label: _Label | None


@dataclass(frozen=True)
class _TarReader:
    root: Path

    def read(self, entry: Entry) -> tuple[bytes, int]:
        assert entry.label is not None
        assert entry.place is not None
        if entry.label == _NO_LABEL:
            raise ImageError("no label")
        if entry.place[1] > picture_files.MAX_BYTES:
            raise ImageError("file too large")
        try:
            with (self.root / split_key(entry.key, SUFFIX)[0]).open("rb") as file:
                return _at(file, entry.place), entry.label
        except OSError:
            raise ImageError("unreadable") from None


def open_webdataset(path: str, split: str) -> Input:
    """Lists the samples that have a picture; see `inputs.open_input`."""
    shards = find_shards(path, SUFFIX, split)
    samples, ignored, kind = [], 0, None
    for name in tqdm(shards.names, desc="listing", unit="file", delay=2, leave=False):
        with (shards.root / name).open("rb") as file:
            for key, parts in _groups(shards.root / name, file).items():
                pictures = [part for part in parts if has_picture_name(f".{part}")]
                if len(pictures) > 1:
                    raise _wrong(name, key, f"the pictures {' and '.join(sorted(pictures))}")
                if not pictures:
                    ignored += len(parts)
                    continue
                if kind is None:
                    kind = _kind_of_label(name, key, file, parts)
                label = _read_label(name, key, file, parts, kind)
                (picture,) = pictures
                samples.append(_Sample(f"{name}/{key}.{picture}", parts[picture], label))
    classes = _classes(path, {sample.label for sample in samples} - {None})
    number: Mapping[Any, int] = {label: place for place, label in enumerate(classes)}
    entries = [Entry(s.key, number.get(s.label, _NO_LABEL), s.place) for s in samples]
    names = tuple(printable(str(label)) for label in classes)
    digest = listing_digest([names, *entries, *zip(shards.names, shards.sizes(), strict=True)])
    return Input("webdataset", entries, names, digest, _TarReader(shards.root), ignored)


def _groups(path: Path, file: IO[bytes]) -> dict[str, dict[str, _Place]]:
    """The places of a tar's files, by key and by the rest of their names in small letters."""
    samples: dict[str, dict[str, _Place]] = {}
    for info in _members(path, file):
        name = PurePosixPath(info.name)
        stem, _, rest = name.name.partition(".")
        if not (stem and rest and info.isreg() and all(map(is_visible, name.parts))):
            continue
        if info.issparse():
            raise _wrong(path.name, info.name, "holes (a sparse file)")
        sample = samples.setdefault(str(name.with_name(stem)), {})
        if rest.lower() in sample:
            raise _wrong(path.name, info.name, "a second file of this name")
        sample[rest.lower()] = (info.offset_data, info.size)
    return samples


def _members(path: Path, file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    size = path.stat().st_size
    careful: Any = _Careful(file)
    try:
        with tarfile.open(fileobj=careful, mode="r:") as archive:
            while (info := archive.next()) is not None:
                if info.offset_data + info.size > size:
                    raise tarfile.ReadError("it was cut short")
                yield info
                archive.members = []  # pyright: ignore[reportAttributeAccessIssue] -- it keeps all
            end = archive.offset
        file.seek(end)
        rest = file.read(_MOST_AT_ONCE)
        if not rest or rest.strip(b"\0") or end + len(rest) < size:
            raise tarfile.ReadError("it was cut short, or more follows after its end")
    except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"input {str(path)!r} is not a whole tar file that is not compressed ({reason}); "
            "allowed: such a file as WebDataset writes it (of .tar.gz: gunzip it)"
        ) from None


class _Careful:
    """A file of which little is read at once, whatever the headers in it say."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > _MOST_AT_ONCE:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)


def _at(file: IO[bytes], place: _Place) -> bytes:
    file.seek(place[0])
    return file.read(place[1])


def _kind_of_label(name: str, key: str, file: IO[bytes], parts: Mapping[str, _Place]) -> str:
    """Which file holds the label, as the first sample says; all others must do as it does."""
    for kind in _LABELS:
        if kind in parts and _read_label(name, key, file, parts, kind) is not None:
            return kind
    others = ", ".join(sorted(printable(part) for part in parts))
    pickled = any(part in _PICKLES for part in parts)
    refused = " (pickles are never read, because reading one can execute code)" if pickled else ""
    raise ConfigError(
        f"input {name!r} has no label that can be read for {printable(key)!r}, only {others}"
        f"{refused}; allowed: a number in .cls, a number or name as 'label' in .json, or a name in "
        ".txt"
    )


def _read_label(
    name: str, key: str, file: IO[bytes], parts: Mapping[str, _Place], kind: str
) -> _Label | None:
    """A sample's label; None where it has none."""
    if kind not in parts:
        return None
    if parts[kind][1] > _MOST_AT_ONCE:
        raise _wrong(name, key, f"a .{kind} of {parts[kind][1]:,} bytes")
    try:
        text = _at(file, parts[kind]).decode("utf-8-sig").strip()
        short = len(text) <= _LONGEST_NAME
        is_number = kind == "cls" or (kind == "txt" and short and text.isdecimal())
        label = json.loads(text) if kind == "json" else int(text) if is_number else text
    except (ValueError, RecursionError):
        raise _wrong(name, key, f"a .{kind} that cannot be read") from None
    if kind == "json" and isinstance(label, dict):
        label = label.get("label")
    if label is None or label == "":
        return None
    if isinstance(label, bool) or not isinstance(label, int | str):
        raise _wrong(name, key, f"the label {label!r:.50}")
    if isinstance(label, int) and not 0 <= label < MAX_CLASSES:
        raise _wrong(name, key, f"the label {label!s:.50}")
    if isinstance(label, str) and len(label) > _LONGEST_NAME:
        raise _wrong(name, key, f"a label of {len(label)} letters, which is no name of a class")
    return label


def _classes(path: str, labels: set[Any]) -> list[Any]:
    """All numbers up to the largest, or the names, sorted."""
    if len({type(label) for label in labels}) > 1:
        number, name = min(x for x in labels if isinstance(x, int)), _first_text(labels)
        raise ConfigError(
            f"input {path!r} has numbers ({number}) and names ({name!r}) as labels; allowed: all "
            "of one kind"
        )
    if len(labels) > MAX_CLASSES:
        raise ConfigError(
            f"input {path!r} has {len(labels):,} different labels; allowed: {MAX_CLASSES:,}"
        )
    if all(isinstance(label, int) for label in labels):
        return list(range(max(labels, default=-1) + 1))
    return sorted(labels)


def _first_text(labels: set[Any]) -> str:
    return min(label for label in labels if isinstance(label, str))


def _wrong(name: str, key: str, has: str) -> ConfigError:
    return ConfigError(
        f"input {name!r} has for {printable(key)!r} {has}; allowed: one picture and one label each "
        f"(a number from 0 to {MAX_CLASSES - 1:,} in .cls, a number or name as 'label' in .json, "
        "or a name in .txt)"
    )
