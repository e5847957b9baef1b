"""What is to be prepared: a listing, fixed before the work, and how its pictures are read."""

import functools
import hashlib
import json
import os
import stat
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, Protocol

import numpy as np

from dit_moe.config import ConfigError
from dit_moe.data.prepare.decode import ImageError

Kind = Literal["image_folder", "zip", "tfds"]

MAX_BYTES = 2**28
"""Of one image file, as its folder or archive declares it."""


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
    """Files outside of class folders."""


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


def printable(text: str) -> str:
    """Text that UTF-8 can hold: file names may have bytes that it cannot."""
    return text.encode("utf-8", "backslashreplace").decode()


def _guess(path: Path) -> Kind:
    if path.is_dir():
        return "tfds" if (path / "dataset_info.json").is_file() else "image_folder"
    if path.is_file():
        return "zip"
    raise ConfigError(
        f"input {str(path)!r} does not exist; allowed: a folder of class folders, a .zip of one, a "
        "folder of a TFDS data set, or, with --source tfds, its name"
    )


def _by_class(path: Path, names: Iterable[str]) -> tuple[list[Entry], tuple[str, ...], int]:
    """Entries, classes and the number of files left out; the class is the first folder."""
    names = sorted(names)
    inside = [name for name in names if "/" in name]
    classes = sorted({name.partition("/")[0] for name in inside})
    if not classes:
        raise ConfigError(
            f"input {str(path)!r} has no class folders; allowed: one folder per class, with its "
            "images inside"
        )
    label = {name: number for number, name in enumerate(classes)}
    entries = [Entry(name, label[name.partition("/")[0]]) for name in inside]
    return entries, tuple(printable(name) for name in classes), len(names) - len(inside)


def listing_digest(lines: Iterable[object]) -> str:
    """SHA-256 of all that the order and the labels of a listing depend on."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(json.dumps(line).encode() + b"\n")
    return digest.hexdigest()


# A folder of class folders.


@dataclass(frozen=True)
class _FolderReader:
    root: Path
    """Resolved."""

    def read(self, entry: Entry) -> tuple[bytes, int]:
        path = self.root / entry.key
        assert entry.label is not None
        try:
            path = path.resolve(strict=True)
            if not path.is_relative_to(self.root):
                raise ImageError("link out of the input")
            status = path.stat()
            # Opening a pipe would wait for ever.
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("not a file")
            if status.st_size > MAX_BYTES:
                raise ImageError("file too large")
            return path.read_bytes(), entry.label
        except (OSError, RuntimeError):  # RuntimeError: links in a circle, before Python 3.13
            raise ImageError("unreadable") from None


def _image_folder(path: Path) -> Input:
    if not path.exists():
        raise ConfigError(f"input {str(path)!r} does not exist; allowed: a folder of class folders")
    if not path.is_dir():
        raise ConfigError(
            f"input {str(path)!r} is a file; allowed for image_folder: a folder of class folders"
        )

    def fail(error: OSError) -> None:
        raise ConfigError(
            f"input folder {str(error.filename)!r} cannot be listed: {error.strerror}"
        )

    root = path.resolve()
    names: list[str] = []
    folders: list[str] = []  # of the first level
    for place, inner, files in os.walk(root, onerror=fail):
        relative = os.path.relpath(place, root)
        prefix = "" if relative == os.curdir else relative.replace(os.sep, "/") + "/"
        inner[:] = [name for name in inner if not name.startswith(".")]
        links = [name for name in inner if os.path.islink(os.path.join(place, name))]
        if not prefix:
            folders = list(inner)
            if links:
                raise ConfigError(
                    f"input {str(path)!r} has the class folder {links[0]!r}, which is a link; "
                    "allowed: real folders"
                )
        # os.walk does not enter linked folders; they are listed, to be rejected by name.
        names += [prefix + name for name in [*files, *links] if not name.startswith(".")]
    entries, classes, ignored = _by_class(path, names) if names else ([], (), 0)
    empty = sorted({printable(name) for name in folders} - set(classes))
    if entries and empty:
        raise ConfigError(
            f"input {str(path)!r} has the class folder {empty[0]!r} without files; allowed: "
            "folders with images (labels are places in the list of folders)"
        )
    digest = listing_digest([classes, *entries])
    return Input("image_folder", entries, classes, digest, _FolderReader(root), ignored)


# A .zip of one.


@functools.lru_cache(maxsize=4)
def _archive(path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


@dataclass(frozen=True)
class _ZipReader:
    path: Path
    prefix: str
    """The folder that holds everything, with its slash, or nothing."""

    def read(self, entry: Entry) -> tuple[bytes, int]:
        assert entry.label is not None
        if not _is_safe(entry.key):
            raise ImageError("path out of the archive")
        info = _archive(self.path).getinfo(self.prefix + entry.key)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ImageError("link in an archive")
        # Decompression stops at the declared size.
        if info.file_size > MAX_BYTES:
            raise ImageError("file too large")
        try:
            return _archive(self.path).read(info), entry.label
        except Exception:  # damaged, encrypted, compressed in an unknown way, unreadable
            raise ImageError("unreadable") from None


def _is_safe(name: str) -> bool:
    return not name.startswith("/") and ".." not in PurePosixPath(name).parts


def _zip(path: Path) -> Input:
    if not path.exists():
        raise ConfigError(f"input {str(path)!r} does not exist; allowed: a .zip of class folders")
    if path.is_dir():
        raise ConfigError(f"input {str(path)!r} is a folder; allowed for zip: a .zip file")
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError):
        raise ConfigError(
            f"input {str(path)!r} is not a readable zip archive; allowed: a .zip of class folders"
        ) from None
    files = {info.filename: info for info in infos if not info.is_dir()}
    safe = {name for name in files if _is_safe(name) and not _is_hidden(name)}
    tops = {name.partition("/")[0] for name in safe if "/" in name}
    # Loose files beside a folder of class folders are ignored, as in a folder.
    loose = {name for name in safe if "/" not in name}
    wrapped = len(tops) == 1 and any(name.count("/") > 1 for name in safe)
    prefix = f"{tops.pop()}/" if wrapped else ""
    if wrapped:
        safe -= loose
    entries, classes, ignored = (
        _by_class(path, (name.removeprefix(prefix) for name in safe)) if safe else ([], (), 0)
    )
    ignored += len(loose) if wrapped else 0
    entries += [Entry(name, 0) for name in sorted(files) if not _is_safe(name)]
    sizes = [(info.filename, info.file_size, info.CRC) for info in infos]
    digest = listing_digest([classes, prefix, *entries, *sizes])
    return Input("zip", entries, classes, digest, _ZipReader(path.resolve(), prefix), ignored)


def _is_hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") for part in parts) or "__MACOSX" in parts
