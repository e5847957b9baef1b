"""A chain of steps, from a run or an open folder to an open folder.

Between steps the model lies, as an open folder too, in OUTPUT.steps, from which the same command
goes on after an interruption; at the end that is removed.
"""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dit_moe.config import ConfigError
from dit_moe.runs.fingerprint import digest
from dit_moe.runs.loading import load_run, locate
from dit_moe.runs.model_folder import write_model
from dit_moe.runs.weights import has_average
from dit_moe.storage.files import check_new, lock, new_folder
from dit_moe.surgery.compress.calibration import Calibration, calibrate, calibration_settings
from dit_moe.surgery.compress.record import (
    Compressed,
    StepRecord,
    read_compressed,
    section,
    size_of,
    write_compressed,
)
from dit_moe.surgery.compress.steps import Model, StepSettings, apply_step, step_text
from dit_moe.surgery.compress.train import Ground

Say = Callable[[str], None]


def compress(
    workdir: str | Path,
    output: Path,
    steps: Sequence[StepSettings],
    *,
    ema: bool | None = None,
    calibration: dict[str, Any] | None = None,
    sums: Path | None = None,
    say: Say = print,
) -> Compressed:
    """Writes a smaller model of a run or an open folder, and returns what was done.

    Args:
      workdir: a run folder, an open folder, or a name on the Hugging Face hub.
      output: a new folder. `OUTPUT.steps` beside it is this function's own.
      steps: one or more, done in order.
      ema: the moving average of the parameters rather than the parameters; None: where there is
        one.
      calibration: see `calibration_settings`.
      sums: a folder for what is found of the calibration, which stays for other chains of the same
        model; None: it goes with `OUTPUT.steps`.
      say: is told of every step.

    Raises:
      ConfigError: the model cannot be read, a step cannot be done with it, or another process
        writes the same output.
      OSError: the output cannot be written.
    """
    folder, work = locate(workdir), output.with_name(f"{output.name}.steps")
    check_new(output)
    ema = has_average(folder) if ema is None else ema
    busy = ConfigError(f"output is {str(output)!r}, which another process is writing")
    with lock(work / ".lock", busy):
        try:
            model = read_model(folder, ema=ema)
            record = _begun(folder, workdir, model)
            settings = calibration_settings(model.config, **(calibration or {}))
            place = sums or work / "sums"
            shown = functools.cache(lambda: calibrate(model.config, settings, place))
            ground = Ground(work, folder.resolve())
            first, model, record = _kept(work, model, record, steps, shown)
            if first:
                say(f"Goes on after step {first} of {len(steps)}, kept in {work}.")
            for number, step in enumerate(steps[first:], start=first + 1):
                model, record = _done(model, record, step, shown, ground)
                say(f"{number}/{len(steps)} {step_text(step)}: {record.after.bytes:,} bytes.")
                target = output if number == len(steps) else _place(work, number, step)
                if target != output:
                    shutil.rmtree(target, ignore_errors=True)  # of another chain
                _write(target, folder, model, record, name=output.name)
        finally:
            if output.is_dir() or not any(path.is_dir() for path in work.iterdir()):
                shutil.rmtree(work)
    return record


def read_model(folder: Path, *, ema: bool) -> Model:
    """A model as steps take it.

    Raises:
      ConfigError: it cannot be read.
    """
    run = load_run(folder, ema)
    parameters = {path: np.asarray(value) for path, value in run.parameters.items()}
    return Model(run.config, parameters, ema, run.step)


def _write(output: Path, source: Path, model: Model, record: Compressed, *, name: str) -> None:
    """Writes an open folder, whole or not at all, which its card calls by the name."""
    with new_folder(output) as target:
        write_model(
            target,
            source,
            model.config,
            model.parameters,
            step=model.step,
            ema=model.ema,
            name=name,
            thin=True,
            more=section(record),
        )
        write_compressed(target, record)


def _begun(folder: Path, workdir: str | Path, model: Model) -> Compressed:
    """The record before the first step; of a compressed folder, its own goes on."""
    known = read_compressed(folder)
    if known is not None:
        return known
    is_here = Path(workdir).is_dir()
    return Compressed(
        source=str(Path(workdir).resolve()) if is_here else str(workdir),
        parameters="ema" if model.ema else "raw",
        training_step=model.step,
        digest=digest(dict(model.parameters)),
        before=size_of(model, thin=False),
    )


def _done(
    model: Model,
    record: Compressed,
    step: StepSettings,
    shown: Callable[[], Calibration],
    ground: Ground,
) -> tuple[Model, Compressed]:
    calibration = shown() if step.needs_calibration else None
    model, told = apply_step(model, step, ground if step.trains else calibration)
    done = StepRecord(**_asked(step, calibration), told=told, after=size_of(model))
    return model, dataclasses.replace(record, steps=(*record.steps, done))


def _asked(step: StepSettings, calibration: Calibration | None) -> dict[str, Any]:
    """What a step's result follows from, beside the model."""
    return {
        "step": step_text(step),
        "settings": json.loads(json.dumps(dataclasses.asdict(step))),
        "calibration": None if calibration is None else calibration.digest,
    }


def _kept(
    work: Path,
    model: Model,
    record: Compressed,
    steps: Sequence[StepSettings],
    shown: Callable[[], Calibration],
) -> tuple[int, Model, Compressed]:
    """How many of the first steps were done before, and what they left."""
    before = record
    for number, step in enumerate(steps[:-1], start=1):
        place = _place(work, number, step)
        known = read_compressed(place) if place.is_dir() else None
        if known is None or dataclasses.replace(known, steps=known.steps[:-1]) != before:
            break
        asked = _asked(step, shown() if step.needs_calibration else None)
        if any(getattr(known.steps[-1], name) != value for name, value in asked.items()):
            break
        before = known
    number = len(before.steps) - len(record.steps)
    if number == 0:
        return 0, model, record
    kept = read_model(_place(work, number, steps[number - 1]), ema=model.ema)
    return number, dataclasses.replace(kept, step=model.step), before


def _place(work: Path, number: int, step: StepSettings) -> Path:
    return work / f"{number:02d}-{step.name}"
