"""The line on the terminal that shows how far a run is."""

import contextlib
import math
import sys
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from dit_moe.devices import hosts


def progress_bar(first_step: int, steps: int) -> tqdm:
    """A bar over all steps of a run, of the lead process; use as a context."""
    return tqdm(
        file=_Stderr(),
        total=steps,
        initial=first_step,
        unit="step",
        dynamic_ncols=True,
        smoothing=0,  # in a log few lines would outweigh the first one
        # In a log file, a line now and then.
        mininterval=0.5 if sys.stderr.isatty() else 30,
        postfix="compiling",
        disable=not hosts.is_lead(),
    )


def postfix(scalars: Mapping[str, float]) -> str:
    """What the bar shows of a log line."""
    parts = [f"loss {scalars['loss']:.4f}"]
    heldout = scalars.get("validation/loss", math.nan)
    if not math.isnan(heldout):
        parts.append(f"validation {heldout:.4f}")
    if not math.isnan(scalars["images_per_second"]):
        parts.append(f"{scalars['images_per_second']:.0f} img/s")
    busiest = [v for name, v in scalars.items() if name.startswith("moe/busiest")]
    if busiest:
        parts.append(f"busiest expert {max(busiest):.0%}")
    return ", ".join(parts)


class _Stderr:
    """Standard error. What cannot be written is lost: Ctrl-C ends `2>&1 | tee log` too."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
