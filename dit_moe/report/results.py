"""What eval wrote, as tables."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit_moe.config import ConfigError
from dit_moe.storage.records import read_json


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
      ConfigError: a given file is not JSON, or no result of eval.
      OSError: it cannot be read.
    """
    tables = []
    for path in given:
        table = _table(path.name, path)
        if table is None:
            raise ConfigError(
                f"results has {str(path)!r}, which eval did not write; allowed: the --output of "
                "eval.fid and eval.classes"
            )
        tables.append(table)
    known = {path.resolve() for path in given}
    for path in sorted([*workdir.glob("*.json"), *workdir.glob("*/*.json")]):
        if path.resolve() in known:
            continue
        try:
            table = _table(path.relative_to(workdir).as_posix(), path)
        except (ConfigError, OSError):  # something else of the user's
            continue
        if table is not None:
            tables.append(table)
    return tables


def _table(title: str, path: Path) -> Results | None:
    """None if it is not eval's.

    Raises:
      ConfigError: it is not JSON.
      OSError: it cannot be read.
    """
    content = read_json(path)
    try:
        if "by_guidance_scale" in content:
            results = content["by_guidance_scale"]
            heads = [str(r["samples"]["drawn"]["guidance"]["scale"]) for r in results]
            columns = [dict(_metrics(r)) for r in results]
            return _columns(title, "guidance scale", heads, columns, results)
        if "by_step" in content:
            return _by_step(title, content["by_step"])
        if "metrics" in content:
            return _columns(title, "metric", ["value"], [dict(_metrics(content))], [content])
        heads = ["samples", "heldout"]
        return _columns(title, "", heads, [dict(_flat(content[h])) for h in heads], [content])
    except (AttributeError, KeyError, TypeError):  # a file of another shape
        return None


def _by_step(title: str, results: Sequence[Any]) -> Results:
    """A row for every step."""
    columns = {str(r["samples"]["drawn"]["step"]): dict(_metrics(r)) for r in results}
    names = tuple(dict.fromkeys(name for column in columns.values() for name in column))
    rows = tuple(
        (step, *(column.get(name, "") for name in names)) for step, column in columns.items()
    )
    return Results(title, ("step", *names), rows, _notes(results))


def _notes(results: Sequence[Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(note) for r in results for note in r.get("notes", ())))


def _columns(
    title: str,
    corner: str,
    heads: Sequence[str],
    columns: Sequence[Mapping[str, str]],
    results: Sequence[Any],
) -> Results:
    names = dict.fromkeys(name for column in columns for name in column)
    rows = tuple((name, *(column.get(name, "") for column in columns)) for name in names)
    return Results(title, (corner, *heads), rows, _notes(results))


def _metrics(result: Any) -> Iterator[tuple[str, str]]:
    yield from _flat(result["metrics"])
    yield "samples", _text(result["samples"]["num"])
    yield "features", str(result["features"]["name"])


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of all that is no list and no table by class."""
    for name, value in content.items():
        if isinstance(value, dict) and not name.endswith(("_per_class", "by_class")):
            yield from _flat(value, f"{prefix}{name} ")
        elif not isinstance(value, (list, dict)):
            yield f"{prefix}{name}", _text(value)


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
