"""The way from a command to the room `eval`, which is called otherwise where it is installed."""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import dit_moe


def eval_module(name: str) -> ModuleType:
    """A module of `eval`: of the folder beside `dit_moe` or, where that is installed, inside it.

    Args:
      name: without "eval.", such as "fid".
    """
    package = Path(dit_moe.__file__).parent
    beside = package.parent / "eval" / "__init__.py"
    found = None if (package / "eval").is_dir() else importlib.util.find_spec("eval")
    ours = found is not None and found.origin == str(beside)
    return importlib.import_module(f"eval.{name}" if ours else f"dit_moe.eval.{name}")
