"""What commands that write a model say at their end."""

import shlex
from pathlib import Path

from dit_moe.config.verbs import spoken


def say_sampling(folder: Path, *, raw: bool = False) -> None:
    """Prints the command that draws from the model; raw: it has no moving average."""
    which = " --parameters raw" if raw else ""
    workdir = shlex.quote(str(folder))
    print(spoken(f"Next: python sample.py --workdir {workdir}{which} --output out/"))
