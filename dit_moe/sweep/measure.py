"""What a run is and what came of it, as numbers: a row of the table, but for the judge's part."""

import math
import statistics
from collections.abc import Callable
from pathlib import Path

from dit_moe.config import Config, ConfigError
from dit_moe.models.parameter_counts import parameter_counts, sparsity
from dit_moe.plan.training_flops import training_flops
from dit_moe.report.metrics import Metrics, group, read_metrics

Row = dict[str, float | None]
"""Numbers by column; None where there is none."""

_END = 0.1
"""Means of the log are over its rows of this last share of the steps: single rows are noisy."""
_DEAD = 0.01
"""An expert counts as dead below this share of an even load."""


def facts(config: Config) -> Row:
    """What follows from the config alone.

    Returns:
      seed, steps, images and tokens of training (a token is a patch); parameters_total and
      parameters_active (`models.parameter_counts`); tokens_per_parameter, of all; sparsity,
      1 - k / E; flops of the training, counted by `plan`.
    """
    counts = parameter_counts(config.model)
    images = config.train.steps * config.train.batch_size
    tokens = images * config.model.num_tokens
    return {
        "seed": config.seed,
        "steps": config.train.steps,
        "images": images,
        "tokens": tokens,
        "parameters_total": counts.total,
        "parameters_active": round(counts.active),
        "tokens_per_parameter": tokens / counts.total,
        "sparsity": sparsity(config.model),
        "flops": images * training_flops(config.model, config.train),
    }


def from_log(config: Config, workdir: Path) -> Row:
    """What metrics.csv of a finished run tells.

    Returns:
      loss and loss_t0 ..., those by quarter of the time range, at the end of training; the same
      with "validation_" before, of the last measurement. busiest, entropy and capacity: mean over
      layers, of the end. dead_experts: those of all layers with next to no load at the end. seconds
      of the steps, without compilation and what is done between steps.

    Raises:
      ConfigError: there is no log, or it is damaged.
    """
    metrics = read_metrics(workdir / "metrics.csv")
    if metrics is None:
        raise ConfigError(f"{workdir / 'metrics.csv'} is missing or has no row; train the run anew")
    names = [name for name in metrics.cells if name != "step"]
    row: Row = {}
    for name in names:
        if name.startswith("validation/"):
            # A run ends with a measurement: an older one would not be of what it became.
            last = metrics.values(name)[-1]
            row[name.replace("/", "_")] = last if math.isfinite(last) else None
        elif name == "loss" or name.startswith("loss_t"):
            row[name] = _end(metrics, name)
    for title, layers in _by_layer(names).items():
        ends = [end for name in layers if (end := _end(metrics, name)) is not None]
        row[title] = statistics.fmean(ends) if ends else None
    if config.model.mixtures:
        row["dead_experts"] = _dead_experts(metrics, names)
    row["seconds"] = _seconds(metrics, config.train.batch_size)
    return row


def _by_layer(names: list[str]) -> dict[str, list[str]]:
    """The columns of every layer, by what they are of."""
    titles = {f"moe/{name}": name for name in ("busiest", "entropy", "capacity")}
    return {titles[c.title]: [*c.names.values()] for c in group(names) if c.title in titles}


def _dead_experts(metrics: Metrics, names: list[str]) -> int:
    loads = [[*c.names.values()] for c in group(names) if c.title.startswith("moe/load/")]
    return sum(
        (_end(metrics, name) or 0.0) < _DEAD / len(layer) for layer in loads for name in layer
    )


def _end(metrics: Metrics, name: str) -> float | None:
    """The mean over the last rows; None where one of them is not finite: training had diverged."""
    steps = metrics.steps
    rows = zip(steps, metrics.values(name), strict=True)
    last = [value for step, value in rows if step > (1 - _END) * steps[-1]]
    if name.startswith("loss_t"):
        last = [value for value in last if not math.isnan(value)]  # no image was of this quarter
    return statistics.fmean(last) if last and all(map(math.isfinite, last)) else None


def _seconds(metrics: Metrics, batch_size: int) -> float | None:
    """By the speed of every row, which a run keeps that was killed in between; a row without one,
    of the step that was compiled, counts as the others."""
    seconds, timed, before = 0.0, 0.0, 0.0
    for step, speed in zip(metrics.steps, metrics.values("images_per_second"), strict=True):
        if speed > 0:
            seconds += (step - before) * batch_size / speed
            timed += step - before
        before = step
    return seconds / timed * before if timed else None


Judge = Callable[[Path, Config], Row]
"""From the folder of a trained run and its config to further columns."""
