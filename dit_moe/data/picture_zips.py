"""The listing of a zip of pictures, and how its files are read."""

import functools
import stat
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dit_moe.data import picture_files
from dit_moe.data.picture_files import (
    FilesError,
    Listing,
    has_picture_name,
    is_visible,
    printable,
)
from dit_moe.storage.pictures import ImageError

_DEFLATE64, _AES = 9, 99
_ENCRYPTED = 1  # bit of a member's flags


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
            if info.file_size > picture_files.MAX_BYTES:
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
    return all(is_visible(part) for part in PurePosixPath(name).parts)
