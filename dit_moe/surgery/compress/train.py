"""Training between other steps, with the model that the chain began with as the teacher."""

import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from dit_moe.config import Config, ConfigError
from dit_moe.config.distillation import DistillConfig
from dit_moe.config.evaluation import EvaluateConfig
from dit_moe.config.rules import RULES, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from dit_moe.runs.checkpoints import TrainingError
from dit_moe.runs.fingerprint import digest
from dit_moe.runs.loading import load_run
from dit_moe.runs.model_folder import write_beside
from dit_moe.runs.open_folder import write_tensors
from dit_moe.storage.files import new_folder
from dit_moe.surgery.compress.steps import Done, Model, StepSettings, step_text
from dit_moe.training.loop import train as train_run


@dataclass(frozen=True, config=RULES, kw_only=True)
class TrainSettings(StepSettings):
    """Some steps of the trainer, on the run's own data; what is not named here is as in the run."""

    name: Literal["train"] = "train"
    steps: PositiveInt
    learning_rate: PositiveFloat | None = None
    warmup_steps: NonNegativeInt = 0
    batch_size: PositiveInt | None = None
    coefficient: NonNegativeFloat = 1.0
    """Of the distance to what the teacher predicts (`train.distill`); 0: from data alone."""
    stop_at: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The share of the steps that have the teacher."""

    @property
    def trains(self) -> bool:
        """It does."""
        return True


class Ground(NamedTuple):
    """Where a step may train."""

    folder: Path
    """For what it keeps until the chain is done."""
    teacher: Path
    """Folder of the model that the chain began with."""


def train(model: Model, settings: TrainSettings, ground: Ground) -> Done:
    """The model after some steps of training: its average where it is one, as before.

    What was interrupted goes on when it is called with the same again.

    Raises:
      ConfigError: the run cannot be trained here, such as without its data, or the training failed.
      KeyboardInterrupt: a signal stopped the training, which kept what it had.
    """
    config = _config(model.config, settings, ground)
    # Named by all that decides what comes of it, so that nothing of another chain goes on.
    asked = hashlib.sha256(f"{step_text(settings)} {ground.teacher}".encode()).hexdigest()
    own = f"{digest(dict(model.parameters))[:16]}-{asked[:16]}"
    start, run = (ground.folder / f"{kind}-{own}" for kind in ("start", "run"))
    if not start.is_dir():
        with new_folder(start) as target:
            write_tensors(target, model.parameters, model.config.model, ema=model.ema)
            write_beside(target, ground.teacher, model.config)
    try:
        stopped_by = train_run(config, run, init_from=str(start))
    except TrainingError as error:
        raise ConfigError(f"step {step_text(settings)!r}: {error}") from error
    if stopped_by is not None:
        raise KeyboardInterrupt
    found = load_run(run, model.ema)
    parameters = {path: np.asarray(p) for path, p in jax.device_get(found.parameters).items()}
    for folder in (start, run):
        shutil.rmtree(folder)
    return Done(model.of(model.config.model, parameters), {"teacher": str(ground.teacher)})


def _config(config: Config, settings: TrainSettings, ground: Ground) -> Config:
    """That of the run, for so many steps from where the model is."""
    chosen: dict[str, Any] = {
        name: value
        for name in ("learning_rate", "batch_size")
        if (value := getattr(settings, name)) is not None
    }
    distill = DistillConfig(str(ground.teacher), settings.coefficient, settings.stop_at)
    quiet: dict[str, Any] = {"sample_every": 0, "validate_every": 0, "evaluate": EvaluateConfig()}
    plain: dict[str, Any] = {"lora": None, "freeze": (), "learn": (), "post_hoc_ema": ()}
    # A few steps must move the average, whose start is another model.
    plain["ema_warmup"] = True
    own = dataclasses.replace(
        config.train,
        steps=settings.steps,
        warmup_steps=settings.warmup_steps,
        checkpoint_every=settings.steps,
        distill=distill if settings.coefficient else None,
        **chosen,
        **quiet,
        **plain,
    )
    return dataclasses.replace(config, train=own)
