"""Pictures in files of their own: what the listing of a folder or a zip holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dit_moe.config import ConfigError
from dit_moe.storage.pictures import SUFFIXES

MAX_BYTES = 2**28
"""The most that one image file may have."""
_SYSTEM = ("__macosx", "@eadir", "desktop.ini", "thumbs.db")  # what systems leave beside files


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
    """Those of the first level, with or without files; a zip has none."""
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


def is_visible(name: str) -> bool:
    """Whether a file or folder of this name is neither hidden nor of a system."""
    return not (name.startswith(".") or name.lower() in _SYSTEM)
