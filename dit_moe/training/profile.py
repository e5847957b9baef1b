"""A profiler trace of a few steps."""

import jax
from etils import epath

from dit_moe.devices import hosts
from dit_moe.training.step import Metrics


class Profile:
    """Traces the steps of a range, or what is left of it when a run is resumed inside it."""

    def __init__(self, steps: range, folder: epath.Path):
        self._steps = steps
        self._folder = folder
        self._running = False

    def before(self, number: int) -> None:
        """Begins the trace if step `number` is the first of the range that is done here."""
        if number in self._steps and not self._running:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, number: int, metrics: Metrics, *, last: bool) -> None:
        """Ends the trace after the last step of the range, or of the run."""
        if self._running and (last or number + 1 not in self._steps):
            jax.block_until_ready(metrics)
            jax.profiler.stop_trace()
            self._running = False
            hosts.say(f"Profile up to step {number:,} written to {self._folder}.")
