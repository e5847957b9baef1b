"""The bar over the steps of a run."""

import sys

from tqdm import tqdm

from dit_moe.training import progress
from dit_moe.training.loop import train
from tests.tiny import tiny


def test_the_time_left_is_told_without_compiling(tmp_path, monkeypatch):
    seconds, bars = [100.0], []

    class Bar(tqdm):
        """One whose clock shows 100 s before the first step is counted, and 1 s for each."""

        def __init__(self, *args, **options):
            options |= {"file": sys.stdout, "ascii": True}
            super().__init__(*args, **options)
            self._time = lambda: seconds[0]
            self.start_t = self.last_print_t = 0.0
            bars.append(self)

        def update(self, n=1):
            seconds[0] += 1
            return super().update(n)

    monkeypatch.setattr(progress, "tqdm", Bar)
    assert train(tiny(), tmp_path) is None
    (bar,) = bars
    assert bar.n == bar.total
    assert bar.format_dict["elapsed"] == bar.total
    assert bar.format_dict["rate"] is None  # the mean over all of it
