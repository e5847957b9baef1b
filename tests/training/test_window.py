"""The speed of a window of steps, by a clock of its own."""

import numpy as np
import pytest

from dit_moe.training import window
from dit_moe.training.window import Window


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Pending:
    """The loss of a step that is still running, and done at some time."""

    def __init__(self, clock: Clock, done: float):
        self.clock, self.done = clock, done

    def block_until_ready(self) -> None:
        self.clock.now = max(self.clock.now, self.done)

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        self.block_until_ready()
        return np.array(1.0)


@pytest.mark.parametrize("pauses", [0, 1, 4])
def test_pauses_take_their_own_time_and_no_more(pauses, monkeypatch):
    """Steps of a second each, given to the device at once; pauses of ten seconds after some."""
    clock = Clock()
    monkeypatch.setattr(window, "time", clock)
    steps = Window(batch_size=16, flops_per_image=1e12, peak=4e13)
    free = 0.0  # when the device has done all
    for number in range(5):
        free = max(free, clock.now) + 1
        steps.add({"loss": Pending(clock, free), "skipped": np.array(0)})  # pyright: ignore[reportArgumentType]
        if number >= 5 - pauses:
            with steps.paused():
                clock.now = max(clock.now, free) + 10  # what is written waits for its step
    scalars, _ = steps.close()
    # The first step, which compiles, is not timed.
    assert scalars["images_per_second"] == scalars["teraflops_per_second"] == 16
    assert scalars["model_flop_utilization"] == 0.4
