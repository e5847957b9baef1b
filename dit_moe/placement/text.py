"""A placement in words."""

from dit_moe.placement.record import Placement, Way

TITLES = {"label": "images by class", "position": "tokens by position and time"}


def text(record: Placement) -> str:
    """What the command prints, in Markdown."""
    settings = record.settings
    lines = [
        f"{record.name}, step {record.step:,}, on {record.devices} devices; {settings.inputs[0]} "
        f"inputs, {settings.num_images:,} images, half of them held out, on which all but "
        "`fitted` is measured.",
        "",
        "| | fitted | stays local | travels | MB an image and pass | busiest device | next "
        "layer's expert beside |",
        "|---|---|---|---|---|---|---|",
        _row("as it lies", record.before),
    ]
    for way in record.ways:
        chosen = " (chosen)" if way.by == record.by else ""
        lines.append(_row(f"{TITLES[way.by]}{chosen}", way))
    blocks = ", ".join(f"{layer.block}: {layer.local:.1%}" for layer in record.layers)
    return "\n".join([*lines, "", f"Stays local by block, as chosen: {blocks}."])


def _row(title: str, way: Way) -> str:
    together = "" if way.together is None else f"{way.together:.1%}"
    return (
        f"| {title} | {way.fitted:.1%} | {way.local:.1%} | {1 - way.local:.1%} | "
        f"{way.bytes / 1e6:.4g} | {way.busiest:.2f} x mean | {together} |"
    )
