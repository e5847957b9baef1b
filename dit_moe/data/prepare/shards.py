"""The files of an input that comes in shards: WebDataset's tars, or parquet."""

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path

from dit_moe.config import ConfigError
from dit_moe.data.picture_files import is_visible

MAX_CLASSES = 100_000
_MAX_FILES = 1_000_000
_RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
_SPLITS = {"dev": "validation", "eval": "validation", "val": "validation", "valid": "validation"}
_SPLITS |= {name: name for name in ("train", "validation", "test")}


@dataclass(frozen=True)
class Shards:
    """Files of one kind in a fixed order."""

    root: Path
    """The folder that they lie in or below."""
    names: tuple[str, ...]
    """Paths below it, with slashes."""

    def sizes(self) -> list[int]:
        """Bytes of each."""
        return [(self.root / name).stat().st_size for name in self.names]


def is_pattern(path: str) -> bool:
    """Whether it names files by `*`, `?`, `[...]` or a range such as `{000..123}`."""
    return glob.has_magic(path) or _RANGE.search(path) is not None


def find_shards(path: str, suffix: str, split: str) -> Shards:
    """The shards that an input names.

    Args:
      path: a file, a pattern of files, or a folder with them at any depth.
      suffix: of their names.
      split: which of a folder's are meant, where their names or folders say of which split each
        is, such as train-00000-of-00294.parquet.

    Raises:
      ConfigError: there are none, or none of the split.
    """
    if Path(path).is_dir():
        root = Path(path).absolute()
        return Shards(root, _of_split(path, _below(root, suffix), split))
    if Path(path).exists() or not is_pattern(path):
        found = [path]
    else:
        found = [name for each in _ranges(path) for name in sorted(glob.glob(each)) or [each]]
    for name in found:
        if not Path(name).is_file():
            raise ConfigError(f"input {name!r} is no file that is there; allowed: {suffix} files")
        if not name.endswith(suffix):
            raise ConfigError(f"input {name!r} does not end in {suffix}; allowed: {suffix} files")
    root = os.path.commonpath([os.path.dirname(os.path.abspath(name)) for name in found])
    relative = (os.path.relpath(os.path.abspath(name), root) for name in found)
    return Shards(Path(root), tuple(name.replace(os.sep, "/") for name in relative))


def split_key(key: str, suffix: str) -> tuple[str, str]:
    """A shard's name, and what of it, from the key of an entry."""
    name, _, rest = key.partition(f"{suffix}/")
    return name + suffix, rest


def _below(root: Path, suffix: str) -> list[str]:
    names = []
    for place, inner, files in os.walk(root):
        # `split_key` takes a folder of such a name for a file.
        inner[:] = [name for name in inner if is_visible(name) and not name.endswith(suffix)]
        relative = os.path.relpath(place, root)
        prefix = "" if relative == os.curdir else relative.replace(os.sep, "/") + "/"
        kept = (n for n in files if n.endswith(suffix) and is_visible(n))
        names += [prefix + n for n in kept if (root / prefix / n).is_file()]
    if not names:
        raise ConfigError(f"input {str(root)!r} has no {suffix} files; allowed: one or more")
    return sorted(names)


def _of_split(path: str, names: list[str], split: str) -> tuple[str, ...]:
    found = {name: _split(name) for name in names}
    if not any(found.values()):
        return tuple(names)
    kept = tuple(name for name in names if found[name] == _SPLITS.get(split, split))
    if not kept or not all(found.values()):
        which = ", ".join(sorted({each or "none" for each in found.values()}))
        raise ConfigError(
            f"split is {split!r}, but the files of input {path!r} are by their names of the "
            f"splits: {which}; allowed: one that they all tell, or a pattern of files as the input"
        )
    return kept


def _split(name: str) -> str | None:
    """The split that a name tells; the last word counts, as in train/val-0.tar."""
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word in _SPLITS]
    return _SPLITS[words[-1]] if words else None


def _ranges(pattern: str) -> list[str]:
    """A pattern without ranges for each number of its ranges."""
    found = _RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last = int(found[1]), int(found[2])
    if last - first >= _MAX_FILES:
        raise ConfigError(f"input {pattern!r} names more than {_MAX_FILES:,} files")
    width = len(found[1])
    before, after = pattern[: found.start()], _ranges(pattern[found.end() :])
    return [f"{before}{i:0{width}}{rest}" for i in range(first, last + 1) for rest in after]
