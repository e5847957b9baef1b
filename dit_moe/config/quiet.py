"""Silence for the process of a command, where failures are told in a sentence.

Orbax and its event loops, which it closes while reads and writes are under way, would add pages of
tracebacks, and warnings of what is meant to be so. Nobody else's process is changed: importing the
package, and calling it from Python, leaves all of this alone.
"""

import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any


def quiet() -> None:
    """Mutes what libraries say beside this package's own sentences, for good."""
    import absl.logging

    absl.logging.set_verbosity(absl.logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    # Of what the host gives to a program that runs, such as experts from a disk that fails.
    logging.getLogger("jax._src.callback").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.unraisablehook = _without_leftovers(sys.unraisablehook)


def _without_leftovers(hook: Callable[[Any], object]) -> Callable[[Any], object]:
    """The hook, called for all but what reads and writes leave behind that were dropped."""

    def drop_leftovers(unraisable: Any) -> None:
        dropped = "_read_array" in str(unraisable.object)
        if not dropped and str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    return drop_leftovers
