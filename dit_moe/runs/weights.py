"""What a folder says of the weights in it: weights.json, where they are an average or the
parameters alone."""

from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from dit_moe.config import ConfigError
from dit_moe.config.rules import RULES
from dit_moe.storage.files import sha256
from dit_moe.storage.records import read_record, write_record

_FILE = "weights.json"
_WORDS = {"ema": "the moving average of the parameters", "raw": "the parameters themselves"}


@dataclass(frozen=True, config=RULES)
class Weights:
    """Kept in an exported folder, and in a run folder made from a checkpoint's average."""

    parameters: Literal["ema", "raw"]
    """Which of the two the folder holds."""
    sha256: dict[str, str]
    """Hashes of its files of tensors, hexadecimal; none for a run's checkpoint, with its own."""


def write_weights(folder: Path, *, ema: bool, files: tuple[str, ...] = ()) -> None:
    """Writes weights.json, with the digests of these files of the folder."""
    digests = {name: sha256(folder / name) for name in sorted(files)}
    write_record(folder / _FILE, Weights("ema" if ema else "raw", digests))


def has_average(folder: Path) -> bool:
    """Whether the folder holds a moving average, or does not say that it holds none.

    Raises:
      ConfigError: weights.json cannot be read.
    """
    weights = _read(folder)
    return weights is None or weights.parameters == "ema"


def check_weights(folder: Path, *, ema: bool) -> None:
    """Checks that the folder holds what is asked for, as it was written, where it says what.

    Raises:
      ConfigError: it holds the other one alone, or a file of tensors is not what was written.
    """
    weights = _read(folder)
    if weights is None:
        return
    asked = "ema" if ema else "raw"
    if weights.parameters != asked:
        raise ConfigError(
            f"{folder} holds {_WORDS[weights.parameters]} alone, and {_WORDS[asked]} are asked "
            f"for; allowed: parameters '{weights.parameters}' (--parameters {weights.parameters}, "
            f"in Python ema={not ema})"
        )
    for name, digest in weights.sha256.items():
        file = folder / name
        if not file.is_file() or sha256(file) != digest:
            raise ConfigError(
                f"{file} is {'damaged or another file' if file.exists() else 'missing'}: {_FILE} "
                "tells its SHA-256; copy or download the folder again"
            )


def _read(folder: Path) -> Weights | None:
    path = folder / _FILE
    return read_record(path, Weights) if path.is_file() else None
