"""What a checkpoint says of itself: a JSON file that shows who wrote it and what it must hold.

It has a checksum of its own, so that damage is not taken for another layout.
"""

import datetime
import functools
import importlib.metadata
import json
import subprocess
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dit_moe.config import ConfigError
from dit_moe.runs.fingerprint import fingerprints, path_name
from dit_moe.storage.files import FilePath
from dit_moe.storage.records import read_json

LAYOUT = 1
"""Goes up when older code would misread checkpoints; it, `version` and `crc32` always stay."""


class Array(NamedTuple):
    """One array of a checkpoint."""

    shape: tuple[int, ...]
    dtype: str
    fingerprint: int
    """See `training.fingerprint`."""


def measure(tree: Any) -> dict[str, Array]:
    """The arrays of a tree by path."""
    found = fingerprints(tree)
    return {path: Array(*kind, found[path]) for path, kind in _shapes(tree).items()}


def describe(arrays: dict[str, Array]) -> dict[str, Any]:
    """The JSON of a checkpoint that holds these arrays, by path."""
    about = {
        "layout": LAYOUT,
        **_writer(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "arrays": {path: array._asdict() for path, array in arrays.items()},
    }
    return {**about, "crc32": _checksum(about)}


def read(path: FilePath, name: str) -> dict[str, Array]:
    """The arrays that a checkpoint must hold, from its JSON; `name` is for messages.

    Raises:
      ValueError: the file is not what was written.
      ConfigError: it is, but of another layout.
      OSError: it cannot be read.
    """
    try:
        about = read_json(path)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    if not isinstance(about, dict) or about.pop("crc32", None) != _checksum(about):
        raise ValueError("its description is not what was written")
    if about["layout"] != LAYOUT:
        raise ConfigError(
            f"{name} has layout {about['layout']}, written by dit_moe {about['version']}; "
            f"allowed: layout {LAYOUT}, or that version of dit_moe"
        )
    return {
        path: Array(tuple(entry["shape"]), entry["dtype"], entry["fingerprint"])
        for path, entry in about["arrays"].items()
    }


def misfits(arrays: dict[str, Array], items: dict[str, Any]) -> list[str]:
    """Paths where the stored arrays and these items of a checkpoint differ in shape or dtype."""
    stored = {path: a[:2] for path, a in arrays.items() if path.split("/")[0] in items}
    wanted = _shapes(items)
    return sorted(p for p in stored.keys() | wanted.keys() if stored.get(p) != wanted.get(p))


def _shapes(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): (a.shape, str(a.dtype)) for path, a in leaves}


def _checksum(about: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(about, sort_keys=True).encode())


@functools.cache
def _writer() -> dict[str, str | None]:
    try:
        version = importlib.metadata.version("dit-moe")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    return {"version": version, "commit": _commit(), "jax": jax.__version__}


def _commit() -> str | None:
    """The commit of the clone that this code runs from ("-dirty" where changed), if it is one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        result = subprocess.run([*command, "--exclude=*"], capture_output=True, text=True)
    except OSError:
        return None
    return result.stdout.strip() or None
