"""The metrics of the steps between two log lines."""

import contextlib
import math
import time
from collections.abc import Iterator

import jax
import numpy as np

from dit_moe.training.health import BAD_DATA
from dit_moe.training.logging import summarize
from dit_moe.training.step import SKIPPED_FOR_DATA, Metrics


class Window:
    """The metrics since the last log line, and how fast they came.

    Args:
      batch_size: images of a step.
      flops_per_image: model FLOPs of training on one image; None where they are not known.
      peak: FLOP/s of all devices together; None where it is not known.
      examples: what else than images they are called.
    """

    def __init__(
        self,
        batch_size: int,
        flops_per_image: float | None,
        peak: float | None,
        examples: str = "images",
    ):
        self._speed_name = f"{examples}_per_second"
        self._batch_size = batch_size
        self._flops_per_image = flops_per_image
        self._peak = peak
        self._steps: list[Metrics] = []
        self._timed_steps = 0
        self._start: float | None = None  # None until the first step has been compiled

    def add(self, metrics: Metrics) -> None:
        """Takes the metrics of a step that may still be running."""
        self._steps.append(metrics)
        if self._start is None:
            metrics["loss"].block_until_ready()
            self._start = time.perf_counter()
            return
        self._timed_steps += 1
        if len(self._steps) > 2:
            # Bounds the queue of dispatched steps without waiting for the newest.
            self._steps[-3]["loss"].block_until_ready()

    def close(self) -> tuple[dict[str, float], list[str | None]]:
        """Waits for the steps and returns their metrics; a new window begins.

        Returns:
          The means over the steps whose update was not skipped (over all if all were), with the
          number of those skipped, and for every step the reason why it was skipped, or None.
        """
        assert self._start is not None
        steps = jax.device_get(self._steps)
        reasons = [_why_skipped(metrics) for metrics in steps]
        done = [m for m, reason in zip(steps, reasons, strict=True) if reason is None]
        scalars = summarize(done or steps)
        scalars["skipped"] = float(len(steps) - len(done))
        seconds = time.perf_counter() - self._start
        images = self._timed_steps * self._batch_size
        speed = images / seconds if images else math.nan
        scalars[self._speed_name] = speed
        if self._flops_per_image is not None:
            scalars["teraflops_per_second"] = speed * self._flops_per_image / 1e12
        if self._flops_per_image is not None and self._peak:
            scalars["model_flop_utilization"] = speed * self._flops_per_image / self._peak
        self._steps, self._timed_steps, self._start = [], 0, time.perf_counter()
        return scalars, reasons

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count, but that of the steps before it does."""
        if self._steps:
            self._steps[-1]["loss"].block_until_ready()
        begin = time.perf_counter()
        yield
        assert self._start is not None
        self._start += time.perf_counter() - begin


def _why_skipped(metrics: Metrics) -> str | None:
    if not metrics["skipped"]:
        return None
    if metrics["skipped"] == SKIPPED_FOR_DATA:
        return BAD_DATA
    name = "gradient_norm" if np.isfinite(metrics["loss"]) else "loss"
    return f"{name} is {float(metrics[name])}"
