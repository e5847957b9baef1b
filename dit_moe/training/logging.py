"""Metrics of a run: `metrics.csv`, TensorBoard and W&B, with the same names and values."""

import csv
import json
import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tensorboardX
from etils import epath

from dit_moe.config import ConfigError
from dit_moe.files import atomic, is_remote


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
    """Appends rows to `metrics.csv`, TensorBoard and, if asked, W&B. Use as a context.

    Args:
      workdir: the run folder. An object store gets no `metrics.csv`, since nothing can be
        appended there.
      first_step: rows after it are dropped, since their steps are about to be done again.
      wandb: project of Weights & Biases. The run keeps its identity when it is resumed.

    Raises:
      ConfigError: wandb is not installed.
    """

    def __init__(self, workdir: epath.Path, first_step: int, wandb: str | None = None):
        self._path = workdir / "metrics.csv"
        self._fields: list[str] = []
        self._keep_rows_until(first_step)
        self._tensorboard = tensorboardX.SummaryWriter(str(workdir), purge_step=first_step + 1)
        self._wandb = _wandb_run(workdir, wandb) if wandb else None

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records the scalars of one step; a NaN is an empty cell."""
        if not is_remote(self._path):
            self._append(step, scalars)
        for name, value in scalars.items():
            if not math.isnan(value):
                self._tensorboard.add_scalar(name, value, step)
        self._tensorboard.flush()
        if self._wandb is not None:
            self._wandb.log({k: v for k, v in scalars.items() if not math.isnan(v)}, step=step)

    def _append(self, step: int, scalars: Mapping[str, float]) -> None:
        if not self._fields:
            self._fields = ["step", *scalars]
            with self._path.open("w") as file:
                csv.writer(file, lineterminator="\n").writerow(self._fields)
        row = {"step": step} | {k: "" if math.isnan(v) else f"{v:.6g}" for k, v in scalars.items()}
        with self._path.open("a") as file:
            csv.DictWriter(file, self._fields, extrasaction="ignore", lineterminator="\n").writerow(
                row
            )

    def _keep_rows_until(self, step: int) -> None:
        """Drops rows after the restored step: their steps are about to be done again."""
        if is_remote(self._path) or not self._path.exists():
            return
        with self._path.open() as file:
            header, *rows = [*csv.reader(file), []]
        if not header:
            return  # stopped before the first row
        with atomic(self._path) as temporary, temporary.open("w") as file:
            kept = [row for row in rows if len(row) == len(header) and int(row[0]) <= step]
            csv.writer(file, lineterminator="\n").writerows([header, *kept])
        self._fields = header


def _wandb_run(workdir: epath.Path, project: str) -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            f"--wandb is {project!r}, but wandb is not installed: pip install wandb"
        ) from None
    path = workdir / "wandb_id.txt"
    if not path.exists():
        with atomic(path) as temporary:
            temporary.write_text(secrets.token_hex(8))
    return wandb.init(
        project=project,
        id=path.read_text(),
        resume="allow",
        name=workdir.name,
        dir=str(workdir),
        config=json.loads((workdir / "config.json").read_text()),
    )
