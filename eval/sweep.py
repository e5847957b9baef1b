"""The same judgement of several sets of samples: one for each guidance scale."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from dit_moe.config import ConfigError
from dit_moe.storage.files import atomic
from dit_moe.storage.records import read_json

from .image_set import ImageSet, ImageSetError
from .metric_table import METRICS
from .result_table import title_of

Result = dict[str, Any]


def judge_sets(
    sets: Iterable[tuple[ImageSet, dict[str, Any]]],
    judge: Callable[[ImageSet, dict[str, Any]], Result],
    parts: Path,
    identity: Mapping[str, Any],
) -> list[Result]:
    """Judges sets in turn; those that are done are not done again.

    Args:
        sets: as of `run_samples.open_run`.
        judge: from a set and its description to a result of `evaluate`.
        parts: folder for the results until all are there; see `finish`.
        identity: all that the results depend on besides the sets, ready for JSON.

    Raises:
        ImageSetError: the run was trained on between two sets.
        OSError: `parts` cannot be written.
    """
    results = []
    for images, drawn in sets:
        if results and drawn["weights"] != results[0]["samples"]["drawn"]["weights"]:
            raise ImageSetError(
                f"{drawn['workdir']} was trained on while it was judged (step {drawn['step']:,} "
                "now); give the same command when training has stopped."
            )
        content = json.dumps({**identity, "samples": images.sha256}, sort_keys=True)
        part = parts / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.json"
        result = _judged(part)
        if result is None:
            result = judge(images, drawn)
            with atomic(part) as temporary:
                temporary.write_text(json.dumps(result))
        results.append(result)
    return results


def _judged(part: Path) -> Result | None:
    """The result that lies there; None if there is none, or it is damaged."""
    try:
        result = read_json(part)
    except (FileNotFoundError, ConfigError):
        return None
    return result if isinstance(result, dict) and "samples" in result else None


def finish(parts: Path) -> None:
    """Removes the results of single scales, once they lie elsewhere."""
    for part in parts.glob("[0-9a-f]*.json"):
        part.unlink()
    with contextlib.suppress(OSError):  # what else lies there is not ours
        parts.rmdir()


def table(results: Sequence[Result]) -> str:
    """One line for every number, one column for every scale."""
    lines = [["guidance scale", *(f"{scale:g}" for scale in scales_of(results))]]
    for title, values in rows(results):
        lines.append([title, *(f"{value:.5g}" for value in values)])
    notes = dict.fromkeys(note for result in results for note in result["notes"])
    return "\n".join([aligned(lines), *([""] if notes else []), *notes])


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lines of as many cells, the first the head, as a table."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    ]
    text.insert(1, "-" * len(text[0]))
    return "\n".join(text)


def plot(results: Sequence[Result], path: Path, what: str, places: Sequence[float]) -> None:
    """Draws every number over `what` differs between the results, which is at `places`."""
    curves = rows(results)
    figure, axes = plt.subplots(
        1, len(curves), figsize=(3.2 * len(curves), 3), layout="constrained", squeeze=False
    )
    for axis, (title, values) in zip(axes[0], curves, strict=True):
        axis.plot(places, values, marker="o")
        axis.set(title=title, xlabel=what)
        axis.grid(alpha=0.3)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)


def scales_of(results: Sequence[Result]) -> list[float]:
    """The guidance scale of each."""
    return [result["samples"]["drawn"]["guidance"]["scale"] for result in results]


def rows(results: Sequence[Result]) -> list[tuple[str, list[float]]]:
    """Titles and numbers: one of each result, in order."""
    return [
        (title_of(title, results[0]), [result["metrics"][name][entry] for result in results])
        for name in results[0]["metrics"]
        for entry, title in METRICS[name].rows.items()
    ]
