"""The result of `evaluate` as a table with a column for samples and one for real images."""

from typing import Any


def table(result: dict[str, Any]) -> str:
    """The result of `evaluate` for people: aligned columns, then the notes."""
    columns = [result["samples"], result["heldout"]]
    few = columns[0]["frechet_images_per_set"] < columns[1]["frechet_images_per_set"]
    rows = [
        ("", ["samples", "held-out real images (ceiling)"]),
        ("images", [f"{column['count']:,}" for column in columns]),
        (
            "Fréchet distance, features of a classifier",
            [
                f"{column['frechet_distance']:.3f}{mark}"
                for column, mark in zip(columns, (" (biased up)" if few else "", ""), strict=True)
            ],
        ),
        ("asked class recognised", [f"{c['asked_class_accuracy']:.1%}" for c in columns]),
        (
            "distance to nearest training image, median",
            [f"{column['nearest_train_distance']['median']:.3f}" for column in columns],
        ),
        (
            f"close to training (under {result['protocol']['close_below_distance']:.3f})",
            [f"{column['close_to_train_share']:.1%}" for column in columns],
        ),
        (
            f"copies of training (under {result['protocol']['copy_below_distance']:.3f})",
            [f"{c['copies_of_train']:,}" for c in columns],
        ),
    ]
    widths = [max(len(row[1][i]) for row in rows) for i in range(2)]
    head = max(len(name) for name, _ in rows)
    lines = [
        f"{name:<{head}}  {cells[0]:>{widths[0]}}  {cells[1]:>{widths[1]}}" for name, cells in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    ratio = f"Fréchet distance: {result['frechet_ratio_to_heldout']:.2f} times the ceiling."
    return "\n".join([*lines, "", ratio, *result["notes"]])
