"""Pictures in files of their own: the listing of a folder or a zip, and how its files are read."""

import functools
import os
import stat
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from dit_moe.config import ConfigError
from dit_moe.data.pictures import SUFFIXES, ImageError

MAX_BYTES = 2**28
"""Of one image file."""
_SYSTEM = ("__macosx", "@eadir", "desktop.ini", "thumbs.db")  # what systems leave beside files
_DEFLATE64, _AES = 9, 99
_ENCRYPTED = 1  # bit of a member's flags


class FilesError(ConfigError):
    """They cannot be listed; the message begins with the path."""


class Files(Protocol):
    """Reads files by name. Small, because it is sent to worker processes."""

    def read(self, name: str) -> bytes:
        """The bytes of a file of the listing.

        Raises:
          ImageError: it cannot be read.
        """
        ...


@dataclass(frozen=True)
class Listing:
    """All files but hidden ones and those of systems, by paths with slashes, sorted."""

    files: Files
    names: Sequence[str]
    folders: Sequence[str] = ()
    """Of the first level, with or without files; of a zip, none."""
    refused: Sequence[str] = ()
    """Members of a zip whose paths lead out of it."""
    loose: int = 0
    """Files of a zip beside the one folder that holds everything."""
    contents: Sequence[tuple[str, int, int]] = ()
    """Name, size and checksum of a zip's members."""


def has_picture_name(name: str) -> bool:
    """Whether a file's name ends as a picture's."""
    return name.lower().endswith(SUFFIXES)


def printable(text: str) -> str:
    """Text that UTF-8 can hold: file names may have bytes that it cannot."""
    return text.encode("utf-8", "backslashreplace").decode()


def _is_visible(name: str) -> bool:
    return not (name.startswith(".") or name.lower() in _SYSTEM)


# Folders.


@dataclass(frozen=True)
class Folder:
    """Files below a folder. A folder of the first level may be a link; other links stay inside."""

    root: Path
    """Resolved."""

    def read(self, name: str) -> bytes:
        """See `Files`."""
        try:
            path = (self.root / name).resolve(strict=True)
            if not path.is_relative_to(self.root):
                first = (self.root / name.partition("/")[0]).resolve()
                if "/" not in name or not path.is_relative_to(first):
                    raise ImageError("link out of the input")
            status = path.stat()
            # Opening a pipe would wait for ever.
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("not a file")
            if status.st_size > MAX_BYTES:
                raise ImageError("file too large")
            return path.read_bytes()
        except (OSError, RuntimeError):  # RuntimeError: links in a circle, before Python 3.13
            raise ImageError("unreadable") from None


def list_folder(path: Path) -> Listing:
    """Lists a folder.

    Raises:
      FilesError: it cannot be listed, or has a folder that is a link to itself.
    """

    def fail(error: OSError) -> None:
        raise FilesError(f"{str(error.filename)!r} cannot be listed: {error.strerror}")

    root = path.resolve()
    names: list[str] = []
    folders: list[str] = []

    def walk(top: str) -> None:
        for place, inner, files in os.walk(os.path.join(root, top), onerror=fail):
            relative = os.path.relpath(place, root)
            prefix = "" if relative == os.curdir else relative.replace(os.sep, "/") + "/"
            inner[:] = [name for name in inner if _is_visible(name)]
            links = [name for name in inner if os.path.islink(os.path.join(place, name))]
            if not prefix:
                folders.extend(inner)
                # os.walk does not enter linked folders.
                for name in links:
                    if root.is_relative_to((root / name).resolve()):
                        raise FilesError(
                            f"{str(path)!r} has the folder {name!r}, which is a link to the folder "
                            "that it lies in; allowed: links to other folders"
                        )
                    walk(name)
                links = []
            # Deeper ones are listed, to be refused by name.
            names.extend(prefix + name for name in [*files, *links] if _is_visible(name))

    walk("")
    return Listing(Folder(root), sorted(names), folders)


# Archives.


@functools.lru_cache(maxsize=4)
def _archive(path: Path, stamp: tuple[int, int]) -> zipfile.ZipFile:
    del stamp
    return zipfile.ZipFile(path)


@dataclass(frozen=True)
class Zip:
    """Members of a zip."""

    path: Path
    """Resolved."""
    stamp: tuple[int, int]
    """Time and size of the file: another one may come to lie at its place."""
    prefix: str = ""
    """The folder that holds everything, with its slash, or nothing."""

    def read(self, name: str) -> bytes:
        """See `Files`."""
        if not _is_safe(name):
            raise ImageError("path out of the archive")
        try:
            archive = _archive(self.path, self.stamp)
            info = archive.getinfo(self.prefix + name)
            if stat.S_ISLNK(info.external_attr >> 16):
                raise ImageError("link in an archive")
            if info.file_size > MAX_BYTES:
                raise ImageError("file too large")
            with archive.open(info) as member:
                # With its length: without, all would be inflated that is there, whatever the
                # archive declares.
                return member.read(info.file_size)
        except ImageError:
            raise
        except Exception:  # damaged, unreadable
            raise ImageError("unreadable") from None


def list_zip(path: Path) -> Listing:
    """Lists a zip; where one folder holds all pictures in folders of its own, what it holds.

    Raises:
      FilesError: it cannot be read, or it is unclear what its folders are.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if info.filename]
        status = path.stat()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError):
        raise FilesError(
            f"{str(path)!r} is not a readable zip archive; allowed: a .zip of class folders"
        ) from None
    members = [info for info in infos if not info.is_dir()]
    _check_packing(path, members)
    names = {info.filename for info in members}
    safe = {name for name in names if _is_safe(name) and _is_visible_path(name)}
    if any("\\" in name for name in safe) and not any("/" in name for name in safe):
        raise FilesError(
            f"{str(path)!r} has backslashes in its names, such as {min(safe)!r}, so its folders "
            "cannot be told; allowed: slashes (unpack it where it was made and give the folder, or "
            "pack it again with another program)"
        )
    prefix = _wrapper(path, safe)
    inside = sorted(name.removeprefix(prefix) for name in safe if name.startswith(prefix))
    return Listing(
        files=Zip(path.resolve(), (status.st_mtime_ns, status.st_size), prefix),
        names=inside,
        refused=sorted(name for name in names if not _is_safe(name)),
        loose=len(safe) - len(inside),
        contents=[(info.filename, info.file_size, info.CRC) for info in infos],
    )


def _check_packing(path: Path, members: Iterable[zipfile.ZipInfo]) -> None:
    for info in members:
        name, method = printable(info.filename), info.compress_type
        if info.flag_bits & _ENCRYPTED or method == _AES:
            raise FilesError(
                f"{str(path)!r} is encrypted ({name!r}); allowed: a zip without a password (unpack "
                "it and give the folder)"
            )
        if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            how = "Deflate64" if method == _DEFLATE64 else f"method {method}"
            raise FilesError(
                f"{str(path)!r} is packed by {how} ({name!r}); allowed: Deflate or no compression "
                "(unpack it, by 7z x for example, and give the folder)"
            )


def _wrapper(path: Path, names: set[str]) -> str:
    """The one folder, with its slash, that holds folders with everything; or nothing."""
    tops = {name.partition("/")[0] for name in names if "/" in name}
    deep = [name for name in names if name.count("/") > 1]
    if len(tops) != 1 or not deep or "dataset.json" in names:
        return ""
    prefix = f"{tops.pop()}/"
    beside = [name for name in names if name.count("/") == 1 and has_picture_name(name)]
    if beside and f"{prefix}dataset.json" not in names:
        raise FilesError(
            f"{str(path)!r} has pictures in its one folder ({min(beside)!r}) and in folders of "
            f"that ({min(deep)!r}), so it is unclear which folders are the classes; allowed: all "
            "at one level (or unpack it and give the folder whose folders are the classes)"
        )
    return prefix


def _is_safe(name: str) -> bool:
    return not name.startswith("/") and ".." not in PurePosixPath(name).parts


def _is_visible_path(name: str) -> bool:
    return all(_is_visible(part) for part in PurePosixPath(name).parts)
