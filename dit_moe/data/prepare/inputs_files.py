"""Folders of pictures, in class folders or without classes, and archives of them, as an input."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dit_moe.config import ConfigError
from dit_moe.data import edm_labels
from dit_moe.data.picture_files import Files, FilesError, Listing, has_picture_name, printable
from dit_moe.data.picture_folders import list_folder
from dit_moe.data.picture_zips import Zip, list_zip
from dit_moe.data.prepare.input import UNCONDITIONAL, Entry, Input, Kind, listing_digest


@dataclass(frozen=True)
class _FileReader:
    files: Files

    def read(self, entry: Entry) -> tuple[bytes, int]:
        assert entry.label is not None
        return self.files.read(entry.key), entry.label


def open_image_folder(path: Path, *, follow_links: bool = False) -> Input:
    """Lists a folder of class folders; see `inputs.open_input`."""
    if not path.exists():
        raise ConfigError(f"input {str(path)!r} does not exist; allowed: a folder of class folders")
    if not path.is_dir():
        raise ConfigError(
            f"input {str(path)!r} is a file; allowed for image_folder: a folder of class folders"
        )
    return _input("image_folder", path, partial(list_folder, follow_links=follow_links))


def open_zip(path: Path) -> Input:
    """Lists a `.zip` of class folders; see `inputs.open_input`."""
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
    """Entries and classes; the class is the first folder, and what lies in none is left out.

    Without class folders, what is named as a picture is of one class.
    """
    inside = [name for name in listing.names if "/" in name]
    classes = sorted({name.partition("/")[0] for name in inside})
    if empty := sorted(set(listing.folders) - set(classes)):
        raise ConfigError(
            f"input {str(path)!r} has the class folder {printable(empty[0])!r} without files; "
            "allowed: folders with images (labels are places in the list of folders)"
        )
    if not classes:
        entries = [Entry(name, 0) for name in listing.names if has_picture_name(name)]
        if not entries:
            raise ConfigError(
                f"input {str(path)!r} has no class folders and no file that is named as a picture; "
                "allowed: one folder per class, with its images inside, or images without classes"
            )
        return entries, UNCONDITIONAL
    label = {name: number for number, name in enumerate(classes)}
    entries = [Entry(name, label[name.partition("/")[0]]) for name in inside]
    return entries, tuple(printable(name) for name in classes)


def _by_edm(path: Path, listing: Listing) -> tuple[list[Entry], tuple[str, ...]]:
    """Entries of what is named as a picture, and the classes that `dataset.json` says."""
    pictures = [name for name in listing.names if has_picture_name(name)]
    if not pictures and any(name.endswith(".npy") for name in listing.names):
        raise ConfigError(
            f"input {str(path)!r} has no pictures beside its {edm_labels.NAME} but .npy files; "
            "allowed: latents of EDM2 with --source edm2"
        )
    try:
        label = edm_labels.read(listing.files, pictures)
    except FilesError as error:
        raise ConfigError(f"input {str(path)!r}: {error}") from None
    if label is None:
        return [Entry(name, 0) for name in pictures], UNCONDITIONAL
    entries = [Entry(name, label[name]) for name in pictures]
    return entries, tuple(str(number) for number in range(max(label.values(), default=-1) + 1))
