"""The listing of a folder of pictures, and how its files are read."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from dit_moe.data import picture_files
from dit_moe.data.picture_files import FilesError, Listing, is_visible
from dit_moe.storage.pictures import ImageError


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
            if status.st_size > picture_files.MAX_BYTES:
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
            inner[:] = [name for name in inner if is_visible(name)]
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
            names.extend(prefix + name for name in [*files, *links] if is_visible(name))

    walk("")
    return Listing(Folder(root), sorted(names), folders)
