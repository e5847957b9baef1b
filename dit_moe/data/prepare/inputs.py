"""What is to be prepared: a listing, fixed before the work, and how its pictures are read."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

from dit_moe.config import ConfigError
from dit_moe.data import edm_labels
from dit_moe.data.picture_files import Files, FilesError, Listing, has_picture_name, printable
from dit_moe.data.picture_folders import list_folder
from dit_moe.data.picture_zips import Zip, list_zip

Kind = Literal["image_folder", "zip", "tfds"]


class Entry(NamedTuple):
    """One picture of the listing."""

    key: str
    """Names it in its source: a path with slashes, or the number of a record."""
    label: int | None
    """None: its record holds it."""


class Reader(Protocol):
    """Reads pictures by entry. Small, because it is sent to every worker process."""

    def read(self, entry: Entry) -> tuple[bytes | np.ndarray, int]:
        """What `decode` takes, and the label.

        Raises:
          ImageError: it cannot be read.
        """
        ...


@dataclass(frozen=True)
class Input:
    """All pictures in a fixed order, with their classes."""

    kind: Kind
    entries: Sequence[Entry]
    classes: tuple[str, ...]
    digest: str
    """SHA-256 of the listing."""
    reader: Reader
    ignored: int = 0
    """Files outside of class folders, or that are no pictures beside a `dataset.json`."""


def open_input(source: Kind | Literal["auto"], path: str, split: str) -> Input:
    """Lists what is to be prepared.

    Args:
      source: its kind; "auto" tells it from the path.
      path: a folder of class folders, a .zip of one, or a TFDS folder or name.
      split: of a TFDS data set, such as "train" or "train[:10%]"; unused by the others.

    Raises:
      ConfigError: it cannot be used; the message is one sentence.
    """
    if source == "auto":
        source = _guess(Path(path))
    match source:
        case "image_folder":
            found = _image_folder(Path(path))
        case "zip":
            found = _zip(Path(path))
        case "tfds":
            from dit_moe.data.prepare.inputs_tfds import open_tfds  # a second to import

            found = open_tfds(path, split)
    if not found.entries:
        raise ConfigError(f"input {path!r} holds no images; allowed: one or more")
    for name in found.classes:
        if name != name.strip() or not name.isprintable():
            raise ConfigError(
                f"input {path!r} has a class named {name!r}; allowed: printable characters, no "
                "space at either end"
            )
    return found


def _guess(path: Path) -> Kind:
    if path.is_dir():
        return "tfds" if (path / "dataset_info.json").is_file() else "image_folder"
    if path.is_file():
        return "zip"
    raise ConfigError(
        f"input {str(path)!r} does not exist; allowed: a folder of class folders, a .zip of one, a "
        "folder of a TFDS data set, or, with --source tfds, its name"
    )


def listing_digest(lines: Iterable[object]) -> str:
    """SHA-256 of all that the order and the labels of a listing depend on."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(json.dumps(line).encode() + b"\n")
    return digest.hexdigest()


# Folders of class folders, and archives of them.


@dataclass(frozen=True)
class _FileReader:
    files: Files

    def read(self, entry: Entry) -> tuple[bytes, int]:
        assert entry.label is not None
        return self.files.read(entry.key), entry.label


def _image_folder(path: Path) -> Input:
    if not path.exists():
        raise ConfigError(f"input {str(path)!r} does not exist; allowed: a folder of class folders")
    if not path.is_dir():
        raise ConfigError(
            f"input {str(path)!r} is a file; allowed for image_folder: a folder of class folders"
        )
    return _input("image_folder", path, list_folder)


def _zip(path: Path) -> Input:
    if not path.exists():
        raise ConfigError(f"input {str(path)!r} does not exist; allowed: a .zip of class folders")
    if path.is_dir():
        raise ConfigError(f"input {str(path)!r} is a folder; allowed for zip: a .zip file")
    return _input("zip", path, list_zip)


def _input(kind: Kind, path: Path, list_files: Callable[[Path], Listing]) -> Input:
    try:
        listing = list_files(path)
    except FilesError as error:
        raise ConfigError(f"input {error}") from None
    names = listing.names
    by_class = _by_edm if edm_labels.NAME in names else _by_folder
    entries, classes = by_class(path, listing) if names else ([], ())
    ignored = listing.loose + len(names) - len(entries)
    entries += [Entry(name, 0) for name in listing.refused]  # to be rejected by name
    prefix = [listing.files.prefix] if isinstance(listing.files, Zip) else []
    digest = listing_digest([classes, *prefix, *entries, *listing.contents])
    return Input(kind, entries, classes, digest, _FileReader(listing.files), ignored)


def _by_folder(path: Path, listing: Listing) -> tuple[list[Entry], tuple[str, ...]]:
    """Entries and classes; the class is the first folder, and what lies in none is left out."""
    inside = [name for name in listing.names if "/" in name]
    classes = sorted({name.partition("/")[0] for name in inside})
    if not classes:
        raise ConfigError(
            f"input {str(path)!r} has no class folders; allowed: one folder per class, with its "
            "images inside"
        )
    if empty := sorted(set(listing.folders) - set(classes)):
        raise ConfigError(
            f"input {str(path)!r} has the class folder {printable(empty[0])!r} without files; "
            "allowed: folders with images (labels are places in the list of folders)"
        )
    label = {name: number for number, name in enumerate(classes)}
    entries = [Entry(name, label[name.partition("/")[0]]) for name in inside]
    return entries, tuple(printable(name) for name in classes)


def _by_edm(path: Path, listing: Listing) -> tuple[list[Entry], tuple[str, ...]]:
    """Entries of what is named as a picture, and classes 0, 1, ... as `dataset.json` says."""
    pictures = [name for name in listing.names if has_picture_name(name)]
    try:
        label = edm_labels.read(listing.files, pictures)
    except FilesError as error:
        raise ConfigError(f"input {str(path)!r}: {error}") from None
    if label is None:
        raise ConfigError(
            f"input {str(path)!r} has a {edm_labels.NAME} with null labels; allowed: a class for "
            f"every picture (or remove {edm_labels.NAME}: then the folders are the classes)"
        )
    entries = [Entry(name, label[name]) for name in pictures]
    return entries, tuple(str(number) for number in range(max(label.values(), default=-1) + 1))
