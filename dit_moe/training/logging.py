"""Metrics of a run: `metrics.csv` and TensorBoard events, with the same names and values."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import tensorboardX

from dit_moe.files import atomic


def summarize(window: Sequence[Mapping[str, jax.Array]]) -> dict[str, float]:
    """Means over the steps of a window as scalars by name.

    A loss by timestep bin is NaN in a step without an image in the bin, and is left out. Arrays
    are spread out: axis 0 is the MoE layer, axis 1 the expert ("moe/load/layer00/expert03").
    """
    host = jax.device_get(list(window))
    scalars: dict[str, float] = {}
    for name in host[0]:
        values = np.stack([metrics[name] for metrics in host]).astype(np.float64)
        absent = np.isnan(values) if name.startswith("loss_t") else np.zeros(values.shape, bool)
        count = (~absent).sum(axis=0)
        mean = np.where(absent, 0, values).sum(axis=0) / np.where(count, count, np.nan)
        for index in np.ndindex(mean.shape):
            suffix = "".join(
                f"/{axis}{i:02d}" for axis, i in zip(("layer", "expert"), index, strict=False)
            )
            scalars[name + suffix] = float(mean[index])
    return scalars


class MetricsWriter:
    """Appends rows to `metrics.csv` and TensorBoard. Use as a context."""

    def __init__(self, workdir: Path, first_step: int):
        self._path = workdir / "metrics.csv"
        self._fields: list[str] = []
        self._keep_rows_until(first_step)
        self._tensorboard = tensorboardX.SummaryWriter(str(workdir), purge_step=first_step + 1)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._tensorboard.close()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records the scalars of one step; a NaN is an empty cell."""
        if not self._fields:
            self._fields = ["step", *scalars]
            with self._path.open("w", newline="") as file:
                csv.writer(file).writerow(self._fields)
        row = {"step": step} | {k: "" if math.isnan(v) else f"{v:.6g}" for k, v in scalars.items()}
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._fields, extrasaction="ignore").writerow(row)
        for name, value in scalars.items():
            if not math.isnan(value):
                self._tensorboard.add_scalar(name, value, step)
        self._tensorboard.flush()

    def _keep_rows_until(self, step: int) -> None:
        """Drops rows after the restored step: their steps are about to be done again."""
        if not self._path.exists():
            return
        with self._path.open(newline="") as file:
            header, *rows = [*csv.reader(file), []]
        if not header:
            return  # stopped before the first row
        with atomic(self._path) as temporary, temporary.open("w", newline="") as file:
            kept = [row for row in rows if len(row) == len(header) and int(row[0]) <= step]
            csv.writer(file).writerows([header, *kept])
        self._fields = header
