"""Writes what a command found out, whole or not at all."""

import json
from pathlib import Path
from typing import Any

from dit_moe.storage import files


def as_json(result: dict[str, Any]) -> bytes:
    """A result as the text of a JSON file. Names of files in it need not be text."""
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    return text.encode(errors="replace")


def write(path: Path, content: bytes) -> None:
    """Writes a file, with its folder if need be.

    Raises:
        OSError: it cannot be written; the message is one sentence that names it.
    """
    try:
        with files.atomic(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror or error}).") from error
