"""The result of an evaluation for people."""

from typing import Any

from .metric_table import METRICS


def title_of(title: str, result: dict[str, Any]) -> str:
    """An entry of `Metric.rows` with the name of the result's distance: only Inception's is FID."""
    features = result["features"]["name"]
    return title.format(FD="FID" if features == "inception" else f"Fréchet distance ({features})")


def table(result: dict[str, Any]) -> str:
    """The result of `evaluate` for people: aligned lines, then the notes."""
    reference = result["reference"]
    what = f"{reference['num']:,} images" if reference["num"] else "stored statistics"
    lines = [("samples", f"{result['samples']['num']:,} images"), ("reference", what)]
    for name, values in result["metrics"].items():
        for entry, title in METRICS[name].rows.items():
            value = values[entry]
            text = f"{value:,}" if isinstance(value, int) else f"{value:.5g}"
            lines.append((title_of(title, result), text))
    left, right = (max(len(line[i]) for line in lines) for i in range(2))
    text = [f"{title:<{left}}  {value:>{right}}" for title, value in lines]
    text.insert(2, "-" * (left + 2 + right))
    return "\n".join([*text, *([""] if result["notes"] else []), *result["notes"]])
