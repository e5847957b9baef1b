"""What eval wrote, as tables."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit_moe.config import ConfigError


@dataclass(frozen=True)
class Results:
    """A table of one file."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def find_results(workdir: Path, given: Sequence[Path]) -> list[Results]:
    """Tables of the given files, and of those in a run folder and its sub-folders.

    Raises:
      ConfigError: a given file is no result of eval.
      OSError: it cannot be read.
    """
    tables = []
    for path in given:
        try:
            table = _table(path.name, json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ConfigError(f"results has {str(path)!r}, which is not JSON: {error}") from None
        if table is None:
            raise ConfigError(
                f"results has {str(path)!r}, which eval did not write; allowed: the --output of "
                "eval.fid and eval.digits"
            )
        tables.append(table)
    known = {path.resolve() for path in given}
    for path in sorted([*workdir.glob("*.json"), *workdir.glob("*/*.json")]):
        if path.resolve() in known:
            continue
        try:
            table = _table(path.relative_to(workdir).as_posix(), json.loads(path.read_text()))
        except (ValueError, OSError):  # something else of the user's
            continue
        if table is not None:
            tables.append(table)
    return tables


def _table(title: str, content: Any) -> Results | None:
    """None if it is not eval's."""
    if not isinstance(content, dict):
        return None
    if isinstance(content.get("by_guidance_scale"), list):
        columns = content["by_guidance_scale"]
        heads = [str(_drawn(column).get("guidance_scale", "")) for column in columns]
        found = _columns(title, "guidance scale", heads, [_metrics(c) for c in columns], columns[0])
    elif "metrics" in content and "features" in content:
        found = _columns(title, "metric", ["value"], [_metrics(content)], content)
    elif "heldout" in content and isinstance(content.get("samples"), dict):
        heads = ["samples", "heldout"]
        found = _columns(title, "", heads, [_flat(content[head]) for head in heads], content)
    else:
        found = None
    return found


def _columns(title: str, corner: str, heads: list[str], columns: list[Any], source: Any) -> Results:
    columns = [dict(column) for column in columns]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = tuple((name, *(column.get(name, "") for column in columns)) for name in names)
    notes = source.get("notes", ())
    return Results(title, (corner, *heads), rows, tuple(str(note) for note in notes))


def _metrics(result: Any) -> Iterator[tuple[str, str]]:
    yield from _flat(result["metrics"])
    yield "samples", _text(result.get("samples", {}).get("num", ""))
    yield "features", str(result["features"].get("name", ""))


def _drawn(result: Any) -> Mapping[str, Any]:
    return result.get("samples", {}).get("drawn", {})


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of all that is no list and no table by class."""
    for name, value in content.items():
        if isinstance(value, dict) and not name.endswith("_per_class"):
            yield from _flat(value, f"{prefix}{name} ")
        elif not isinstance(value, (list, dict)):
            yield f"{prefix}{name}", _text(value)


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
