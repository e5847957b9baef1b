"""Ctrl-C, SIGTERM and a closed terminal as a request to stop after the current step."""

import contextlib
import signal
from types import FrameType

_ANSWER = "Stopping after this step, with a checkpoint. Once more stops at once."


class Interrupt:
    """While active, the first SIGINT, SIGTERM or SIGHUP is noted; a second one stops at once.

    But for SIGHUP: a terminal that is closed sends it twice, by the shell and by the system. Where
    it is ignored (`nohup`), it stays so.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        """The signal that asked to stop, if any did."""
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        for number in numbers:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore(*self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.signal = self.signal or number
        self._restore(signal.SIGINT, signal.SIGTERM)
        # Nobody may read the output any longer (Ctrl-C ends `| tee` too), or the signal came while
        # something was being printed, which is a RuntimeError.
        with contextlib.suppress(OSError, RuntimeError):
            print(f"\n{_ANSWER}", flush=True)

    def _restore(self, *numbers: int) -> None:
        for number in numbers:
            signal.signal(number, self._previous[number])  # pyright: ignore[reportArgumentType]
