"""A copy of parts of this checkout."""

import shutil
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent


def copy_parts(names: Iterable[str], folder: Path) -> None:
    """Copies files and folders at the checkout's top, without what Python compiled, into a folder
    that is there."""
    for name in names:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, folder)
