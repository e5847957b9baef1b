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
    """Files below a folder. A folder of the first level may be a link; other links stay inside,
    unless they are to be followed."""

    root: Path
    """Resolved."""
    follow_links: bool = False

    def read(self, name: str) -> bytes:
        """See `Files`."""
        try:
            path = (self.root / name).resolve(strict=True)
            if not self.follow_links and not path.is_relative_to(self.root):
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


def list_folder(path: Path, *, follow_links: bool = False) -> Listing:
    """Lists a folder.

    Args:
      path: the folder.
      follow_links: files and folders at any depth may be links, wherever they lead.

    Raises:
      FilesError: it cannot be listed, or a link that is followed leads back to where it lies.
    """

    def fail(error: OSError) -> None:
        raise FilesError(f"{str(error.filename)!r} cannot be listed: {error.strerror}")

    root = path.resolve()
    names: list[str] = []
    folders: list[str] = []

    def walk(top: str, through: tuple[Path, ...]) -> None:
        """Lists what is below `top`, to which the links in the folders `through` lead."""
        for place, inner, files in os.walk(os.path.join(root, top), onerror=fail):
            relative = os.path.relpath(place, root)
            prefix = "" if relative == os.curdir else relative.replace(os.sep, "/") + "/"
            inner[:] = [name for name in inner if is_visible(name)]
            links = [name for name in inner if os.path.islink(os.path.join(place, name))]
            if not prefix:
                folders.extend(inner)
            if not prefix or follow_links:
                here = (*through, Path(place).resolve())
                # os.walk does not enter linked folders.
                for name in links:
                    target = Path(place, name).resolve()
                    if any(folder.is_relative_to(target) for folder in here):
                        raise FilesError(
                            f"{str(path)!r} has the folder {prefix + name!r}, which is a link to "
                            "the folder that it lies in; allowed: links to other folders"
                        )
                    walk(prefix + name, here)
                links = []
            # Deeper ones are listed, to be refused by name.
            names.extend(prefix + name for name in [*files, *links] if is_visible(name))

    walk("", ())
    return Listing(Folder(root, follow_links), sorted(names), folders)
