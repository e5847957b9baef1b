"""Files and folders that are either whole or absent."""

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias, TypeVar, cast

from etils import epath

from dit_moe.storage.errors import ConfigError

FilePath: TypeAlias = Path | epath.Path
P = TypeVar("P", bound=FilePath)


def is_remote(path: epath.PathLike) -> bool:
    """Whether it is an address of an object store, such as gs://bucket/run, and no local file."""
    return "://" in str(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """A local path from the root; an address as it is."""
    return epath.Path(path if is_remote(path) else Path(path).absolute())


def check_reachable(name: str, path: epath.PathLike) -> None:
    """Asks an object store whether it can be used at all; a local path is not looked at.

    Args:
      name: of the setting, for the message.
      path: a local path or an address.

    Raises:
      ConfigError: its client is not installed, or it does not answer.
    """
    if not is_remote(path):
        return
    try:
        epath.Path(path).exists()
    except Exception as error:  # of any client, each with exceptions of its own
        raise ConfigError(
            f"{name} is {str(path)!r}, which cannot be reached ({type(error).__name__}: {error}); "
            "allowed: a local folder, or an address of an object store whose client is installed "
            "(gs:// gcsfs, s3:// s3fs)"
        ) from error


@contextlib.contextmanager
def atomic(path: P) -> Iterator[P]:
    """Yields a temporary name beside `path` that becomes `path` when the block succeeds.

    Raises:
      OSError: the folder or file cannot be written; a file that was there stays as it was. What
        is there and no file, such as /dev/null, is never replaced.
    """
    if not is_remote(path) and path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "Is there and not a file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays: NumPy and Pillow choose the format by it.
    temporary = cast(P, path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}"))
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yields a folder that becomes `output` when the block succeeds, and is removed otherwise.

    Raises:
      ConfigError: `output` is there and not an empty folder, or one that no other can replace: a
        link or where a file system is mounted.
      OSError: the folder cannot be made.
    """
    check_new(output)
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{secrets.token_hex(4)}")
    try:
        temporary.mkdir()
        yield temporary
        temporary.replace(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new(output: Path) -> None:
    """Checks that a folder can be made, before the work of which it is the result.

    Raises:
      ConfigError: as of `new_folder`.
    """
    replaceable = not output.exists() or (output.is_dir() and not any(output.iterdir()))
    if not replaceable or output.is_symlink() or output.is_mount():
        raise ConfigError(f"output is {str(output)!r}, which is there already; allowed: a new one")


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def lock(path: FilePath, busy: Exception) -> Iterator[None]:
    """Holds the file `path`, made if absent, against other processes; ends with this process.

    Object stores have no locks: there, nothing is held.

    Raises:
      the exception `busy`: another process holds it.
      ConfigError: it is a link.
      OSError: it cannot be made.
    """
    if is_remote(path):
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Neither through a link nor emptied: what lies there may be a file of something else.
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise ConfigError(
            f"{path} is a link; a lock must be a file of its own: remove the link"
        ) from None
    with os.fdopen(descriptor) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        yield
