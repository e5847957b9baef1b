"""The images of a set that is being drawn, on disk part by part."""

import contextlib
import json
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dit_moe.config import ConfigError
from dit_moe.storage.files import atomic
from dit_moe.storage.records import read_json

_NUMBER = "[0-9]" * 9
# On which no image depends, or by the weights alone.
_FREE = ("num_samples", "batch_size", "class_names", "start_share")


def differences(made_of: Mapping[str, object], other: Mapping[str, object]) -> list[str]:
    """The names of what two sets' images depend on, as JSON holds it, and is not the same.

    What is inside of a record has its name before it: `guidance.scale`.
    """
    # Tuples are lists there.
    a, b = json.loads(json.dumps([made_of, other]))
    return sorted(name for name in _unlike(a, b) if name not in _FREE)


def _unlike(a: Any, b: Any, name: str = "") -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a.keys() | b.keys():
            yield from _unlike(a.get(key), b.get(key), f"{name}.{key}" if name else key)
    elif a != b:
        yield name


def read_description(path: Path) -> dict[str, Any] | None:
    """What a set is made of, `num_samples` among it; None if no JSON there tells it."""
    try:
        made_of = read_json(path)
    except (FileNotFoundError, ConfigError):
        return None
    known = isinstance(made_of, dict) and isinstance(made_of.get("num_samples"), int)
    return made_of if known else None


class Parts:
    """Images 0, 1, ... as far as they are drawn: arrays [n, H, W, C] in files FIRST-END.npy.

    Args:
      folder: for them alone, made with the first part.
      made_of: what the images depend on, ready for JSON.

    Raises:
      ConfigError: the folder holds something else, which is left alone.
    """

    def __init__(self, folder: Path, made_of: Mapping[str, object]):
        self._folder, self._made_of = folder, made_of
        self._request = folder / "request.json"
        self._check()
        self.files: list[Path] = []
        """In order."""
        self.done = 0
        """How many images they hold."""
        ranges = {_range(path): path for path in folder.glob(f"{_NUMBER}-{_NUMBER}.npy")}
        for (first, end), path in sorted(ranges.items()):
            if first == self.done:
                self.files.append(path)
                self.done = end

    def _check(self) -> None:
        if not self._folder.exists() or {*self._folder.iterdir()} <= {self._request}:
            return
        if not self._request.is_file():
            raise ConfigError(f"{self._folder} holds no samples of ours; allowed: another --output")
        known = read_description(self._request)
        names = [self._request.name] if known is None else differences(known, self._made_of)
        if names:
            raise ConfigError(
                f"{self._folder} holds images of an unfinished set that differs in "
                f"{', '.join(names)}; allowed: the command that began it, another --output, or "
                "remove that folder"
            )

    def add(self, x_NxHxWxC: np.ndarray) -> None:
        """Keeps the next images."""
        with self._next(len(x_NxHxWxC)) as temporary:
            np.save(temporary, x_NxHxWxC)

    def adopt(self, npz: Path, count: int) -> None:
        """Keeps the `count` images of a whole set, before any are drawn.

        Raises:
          ConfigError: the set is damaged.
        """
        try:
            with (
                zipfile.ZipFile(npz) as archive,
                archive.open("arr_0.npy") as member,
                self._next(count) as temporary,
            ):
                with temporary.open("wb") as file:
                    shutil.copyfileobj(member, file)
                if len(np.load(temporary, mmap_mode="r")) != count:
                    raise ValueError(f"it does not hold {count:,} images")
        except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, ValueError) as error:
            raise ConfigError(
                f"{npz} is damaged ({error}); allowed: another --output, or remove it"
            ) from None

    def remove(self) -> None:
        """Removes all of them."""
        shutil.rmtree(self._folder)

    @contextlib.contextmanager
    def _next(self, count: int) -> Iterator[Path]:
        """Yields where to write the part of the next images."""
        if not self.files:
            with atomic(self._request) as temporary:
                temporary.write_text(json.dumps(self._made_of, indent=2) + "\n")
        path = self._folder / f"{self.done:09d}-{self.done + count:09d}.npy"
        with atomic(path) as temporary:
            yield temporary
        self.files.append(path)
        self.done += count


def _range(path: Path) -> tuple[int, int]:
    first, _, end = path.stem.partition("-")
    return int(first), int(end)
