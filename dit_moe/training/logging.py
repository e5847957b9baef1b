"""Metrics of a run: `metrics.csv`, TensorBoard and W&B, with the same names and values."""

import math
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import tensorboardX
from etils import epath
from PIL.Image import Image

from dit_moe.storage.files import is_remote
from dit_moe.training.metrics_table import MetricsTable
from dit_moe.training.step import Metrics
from dit_moe.training.wandb_run import start_wandb


def summarize(window: Sequence[Metrics]) -> dict[str, float]:
    """Means over the steps of a window as scalars by name.

    A loss by timestep bin is NaN in a step without an image in the bin, and is left out. What is
    of MoE layers is spread out: axis 0 is the layer, axis 1 the expert
    ("moe/load/layer00/expert03").
    """
    host = jax.device_get(list(window))
    scalars: dict[str, float] = {}
    for name, value in host[0].items():
        if not isinstance(value, Mapping):
            scalars[name] = float(_mean(name, [metrics[name] for metrics in host]))
            continue
        for first in value:
            mean = _mean(name, [metrics[name][first] for metrics in host])
            for layer, *expert in np.ndindex(mean.shape):
                suffix = "".join(f"/expert{e:02d}" for e in expert)
                scalars[f"{name}/layer{first + layer:02d}{suffix}"] = float(mean[layer, *expert])
    return scalars


def _mean(name: str, steps: Sequence[np.ndarray]) -> np.ndarray:
    values = np.stack(steps).astype(np.float64)
    absent = np.isnan(values) if name.startswith("loss_t") else np.zeros(values.shape, bool)
    count = (~absent).sum(axis=0)
    return np.where(absent, 0, values).sum(axis=0) / np.where(count, count, np.nan)


class MetricsWriter:
    """Appends rows to `metrics.csv`, TensorBoard and, if asked, W&B. Use as a context.

    Args:
      workdir: the run folder. An object store gets no `metrics.csv`, since nothing can be
        appended there.
      first_step: rows after it are dropped, since their steps are about to be done again.
      wandb: project of Weights & Biases. The run keeps its identity when it is resumed.

    Raises:
      ConfigError: wandb cannot be used.
      OSError: the files cannot be read or written.
    """

    def __init__(self, workdir: epath.Path, first_step: int, wandb: str | None = None):
        self._table = None if is_remote(workdir) else MetricsTable(workdir, first_step)
        # Its files are named by whole seconds: of two starts in one, one file was lost.
        self._tensorboard = tensorboardX.SummaryWriter(
            str(workdir), purge_step=first_step + 1, filename_suffix=f".{time.time_ns()}"
        )
        self._wandb = start_wandb(workdir, wandb) if wandb else None

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records the scalars of one step; a NaN is an empty cell.

        Raises:
          OSError: somewhere they could not be recorded.
        """
        if self._table is not None:
            self._table.append(step, scalars)
        for name, value in scalars.items():
            if not math.isnan(value):
                self._tensorboard.add_scalar(name, value, step)
        self._tensorboard.flush()
        if self._wandb is not None:
            self._wandb.log(step, {k: v for k, v in scalars.items() if not math.isnan(v)})

    def show(self, step: int, grid: Image) -> None:
        """Adds a grid of samples to TensorBoard and W&B.

        Raises:
          OSError: somewhere it could not be added.
        """
        self._tensorboard.add_image("samples", np.asarray(grid), step, dataformats="HWC")
        self._tensorboard.flush()
        if self._wandb is not None:
            self._wandb.show(step, grid)
