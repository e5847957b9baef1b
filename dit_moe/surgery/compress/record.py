"""What a compressed folder says of itself: compressed.json, and a section of its card."""

from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from dit_moe.config.rules import RULES
from dit_moe.models.parameter_counts import parameter_counts
from dit_moe.runs.open_folder import stored_tensors
from dit_moe.storage.records import read_record, write_record
from dit_moe.surgery.compress.steps import Model

FILE = "compressed.json"


@dataclass(frozen=True, config=RULES)
class Size:
    """How large a model is."""

    parameters: int
    active: float
    """Of these, those that compute a token (models/parameter_counts.py)."""
    bytes: int
    """Of its tensors, as an open folder stores them."""


@dataclass(frozen=True, config=RULES)
class StepRecord:
    """One step that was done."""

    step: str
    """As the command line has it."""
    settings: dict[str, Any]
    calibration: str | None
    """Digest of what the network was shown (calibration.py); None: nothing."""
    told: dict[str, Any]
    """What the step tells of itself."""
    after: Size


@dataclass(frozen=True, config=RULES)
class Compressed:
    """Kept in a compressed folder as compressed.json."""

    source: str
    """The folder, from the root, or the name on the Hugging Face hub, that the first step read."""
    parameters: Literal["ema", "raw"]
    training_step: int
    """Where the source's checkpoint was saved."""
    digest: str
    """Of the source's parameters."""
    before: Size
    steps: tuple[StepRecord, ...] = ()
    """All that were done, in order; the last tells the size of what is here."""
    format: Literal[1] = 1

    @property
    def after(self) -> Size:
        """What the steps made of it."""
        return self.steps[-1].after if self.steps else self.before


def size_of(model: Model, *, thin: bool = True) -> Size:
    """Measures a model; thin: as a compressed folder stores it, with masks of zeros."""
    counts = parameter_counts(model.config.model)
    stored = stored_tensors(model.parameters, thin=thin)
    return Size(counts.total, counts.active, sum(array.nbytes for array in stored.values()))


def read_compressed(folder: Path) -> Compressed | None:
    """What a folder says, if it was compressed.

    Raises:
      ConfigError: the file cannot be read.
    """
    path = folder / FILE
    return read_record(path, Compressed) if path.is_file() else None


def write_compressed(folder: Path, record: Compressed) -> None:
    """Writes it into the folder."""
    write_record(folder / FILE, record)


def section(record: Compressed) -> str:
    """A section of the card: what was done, and what it saved."""
    rows = [("the original", record.before)]
    rows += [(f"`{step.step}`", step.after) for step in record.steps]
    lines = [
        f"| {name} | {size.bytes:,} | {size.parameters:,} | {size.active:,.0f} |"
        for name, size in rows
    ]
    table = "\n".join(lines)
    return f"""
## Compressed

| | bytes | parameters | active |
|---|---|---|---|
{table}

`{FILE}` tells settings, seeds and digests.
"""
