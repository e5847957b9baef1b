"""A folder that is a queue: any number of processes take from it, and any of them may be killed.

For each task it holds NAME.lock, held by whoever does it and free when that process ends, however
it ends; NAME.taken, a line for each time that it was begun; and, once the task is over, NAME.json
with what came of it. It knows nothing of what the tasks are.
"""

import contextlib
import datetime
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic.dataclasses import dataclass

from dit_moe.storage.errors import ConfigError
from dit_moe.storage.files import is_remote, lock
from dit_moe.storage.records import read_record, write_record


@dataclass(frozen=True)
class Outcome:
    """What came of a task."""

    result: dict[str, int | float | None] | None = None
    """Of a task that is done: numbers by name."""
    failure: str | None = None
    """The sentence of a task that failed."""

    def __post_init__(self) -> None:
        if (self.result is None) == (self.failure is None):
            raise ValueError("either result or failure is told")


class _BusyError(Exception):
    """Another process holds the lock."""


class Queue:
    """Tasks by name in a folder of this machine, or of a file system that machines share.

    The file system must have locks (`flock`); NFS since version 3 has, Lustre where it is mounted
    so.

    Args:
      folder: made when something is taken.
      names: of all tasks, in the order in which they are taken; each may be part of a file's name.

    Raises:
      ConfigError: the folder is in an object store, which has no locks.
    """

    def __init__(self, folder: Path, names: Sequence[str]):
        if is_remote(folder):
            raise ConfigError(
                f"output is {str(folder)!r}, and object stores have no locks that keep workers "
                "apart; allowed: a folder of this machine or of a shared file system"
            )
        self._folder = folder
        self.names = tuple(names)

    @contextlib.contextmanager
    def take(self) -> Iterator[str | None]:
        """Holds the next task that nobody does, within the block; None where there is none.

        Those that were begun the fewest times come first: a task that ends its process, as for
        want of memory, does not keep one from the others.

        Raises:
          OSError: the folder cannot be written.
          ConfigError: an outcome in it is damaged.
        """
        with contextlib.ExitStack() as held:
            yield next((name for name in self._order() if self._begin(name, held)), None)

    def outcome(self, name: str) -> Outcome | None:
        """What came of a task; None until it is over.

        Raises:
          ConfigError: the file that tells it is damaged.
        """
        try:
            return read_record(self._path(name, "json"), Outcome)
        except FileNotFoundError:
            return None
        except ConfigError as error:
            raise ConfigError(f"{error}; remove it, and the task is done again") from None

    def finish(self, name: str, outcome: Outcome) -> None:
        """Writes what came of the task, which the caller holds: it is over.

        Raises:
          ConfigError: a number of it is not finite.
          OSError: it cannot be written.
        """
        write_record(self._path(name, "json"), outcome)

    def forget_failures(self) -> None:
        """Makes failed tasks tasks to do again."""
        for name in self.names:
            outcome = self.outcome(name)
            if outcome is not None and outcome.failure is not None:
                self._path(name, "json").unlink(missing_ok=True)

    def _order(self) -> list[str]:
        return sorted(self.names, key=lambda name: len(self._taken(name)))

    def _begin(self, name: str, held: contextlib.ExitStack) -> bool:
        """Whether the task is now the caller's."""
        if self.outcome(name) is not None:
            return False
        own = contextlib.ExitStack()
        try:
            own.enter_context(lock(self._path(name, "lock"), _BusyError()))
        except _BusyError:
            return False
        # It may have been finished since it was looked at.
        if self.outcome(name) is not None:
            own.close()
            return False
        held.push(own)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with self._path(name, "taken").open("a") as file:
            file.write(f"{now} {platform.node()} {os.getpid()}\n")
        return True

    def _taken(self, name: str) -> list[str]:
        try:
            return self._path(name, "taken").read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return []

    def _path(self, name: str, suffix: str) -> Path:
        return self._folder / f"{name}.{suffix}"
