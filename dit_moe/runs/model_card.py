"""The card of an open folder, its README.md, for people and for the Hugging Face hub."""

import csv
import json
import shlex
from pathlib import Path

from dit_moe.autoencoder.latent_space import LatentSpace
from dit_moe.config import Config
from dit_moe.models.parameter_counts import parameter_counts
from dit_moe.storage.files import atomic
from dit_moe.storage.records import read_json


def model_card(
    config: Config,
    space: LatentSpace | None,
    *,
    step: int,
    ema: bool,
    name: str,
    more: str = "",
) -> str:
    """README.md of an open folder: what the model is and how to use it.

    Args:
      config: of the model.
      space: its latents, where it has some.
      step: of the training, where its parameters were saved.
      ema: they are the moving average.
      name: of the folder.
      more: a section between the two, with an empty line before it.
    """
    model = config.model
    size = f"{model.depth} blocks of width {model.width}, {model.heads} heads, "
    size += f"patches of {model.patch_size}x{model.patch_size}"
    rows = [
        ("parameters", f"{parameter_counts(model).total:,}"),
        ("size", size),
        ("input", "x".join(map(str, model.image_shape))),
        ("classes", f"{model.num_classes:,}, and label {model.null_label} for none"),
        ("objective", config.objective.name),
    ]
    for mixture in dict.fromkeys(model.mixtures):
        each = mixture.top_k if mixture.tokens_choose else mixture.rows(model.num_tokens)
        kinds = " and ".join(f"{group.number} of {group.kind}" for group in mixture.groups)
        experts = f"{kinds}, {each:g} for a token"
        experts += "" if mixture.tokens_choose else " on average"
        rows.insert(2, ("experts", f"{experts}, router {mixture.router.name}"))
    if space is not None:
        rows.append(("latents of", f"`{space.autoencoder.source}`"))
    weights = "the moving average" if ema else "the parameters themselves"
    rows.append(("weights", f"{weights} at step {step:,}"))
    table = "\n".join(f"| {title} | {text} |" for title, text in rows)
    return f"""---
library_name: dit_moe
pipeline_tag: unconditional-image-generation
tags: [diffusion, diffusion-transformer{", mixture-of-experts" if model.mixtures else ""}]
---

# {config.name}

| | |
|---|---|
{table}

`config.json` is the whole configuration.
{more}
## Use

```
python sample.py --workdir {shlex.quote(name)}{"" if ema else " --parameters raw"} --output out/
```

```python
import dit_moe

model = dit_moe.load({json.dumps(name)}{"" if ema else ", ema=False"})
prediction = model(x, t, y)  # x [N,H,W,C], t in the network's own unit, y [N] labels
```
"""


def measured(workdir: Path) -> str:
    """A section with the results of the evaluation that lie in the run folder, and the last of the
    training loss; empty where there are none."""
    rows = []
    for path in sorted(workdir.glob("*.json")):
        try:
            metrics = read_json(path)["metrics"]
            found = {f"{m} {k}": v for m, values in metrics.items() for k, v in values.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        numbers = {k: v for k, v in found.items() if isinstance(v, int | float)}
        rows += [(f"{path.stem}: {name}", f"{value:.4g}") for name, value in numbers.items()]
    if (workdir / "metrics.csv").is_file():
        with (workdir / "metrics.csv").open(newline="") as file:
            last = list(csv.DictReader(file))[-1:]
        rows += [("training loss", row["loss"]) for row in last if row.get("loss")]
    if not rows:
        return ""
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"\n## Measured\n\n| | |\n|---|---|\n{table}\n"


def write_card(folder: Path, card: str) -> None:
    """Writes it into the folder."""
    with atomic(folder / "README.md") as temporary:
        # The folder's name need not be text in UTF-8.
        temporary.write_text(card, encoding="utf-8", errors="backslashreplace")
