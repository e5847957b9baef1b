"""Ctrl-C and SIGTERM as a request to stop after the current step."""

import contextlib
import signal
from types import FrameType

_ANSWER = "Stopping after this step, with a checkpoint. Once more stops at once."


class Interrupt:
    """While active, the first SIGINT or SIGTERM is noted; a second one stops at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        """The signal that asked to stop, if any did."""
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.signal = number
        self._restore()
        # Nobody may read the output any longer (Ctrl-C ends `| tee` too), or the signal came while
        # something was being printed, which is a RuntimeError.
        with contextlib.suppress(OSError, RuntimeError):
            print(f"\n{_ANSWER}", flush=True)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
