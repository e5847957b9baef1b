"""Models from run folders and presets."""

from pathlib import Path
from typing import NamedTuple

from flax import nnx

from dit_moe.config import Config, ConfigError
from dit_moe.config_io import load_json
from dit_moe.nn.dit import DiT
from dit_moe.nn.parameters import Parameters, abstract_parameters, set_parameters
from dit_moe.presets import preset
from dit_moe.training.checkpoint import Checkpoints


class Run(NamedTuple):
    """What a run folder holds at its newest checkpoint."""

    config: Config
    step: int
    parameters: Parameters


def load_run(workdir: str | Path, ema: bool = True) -> Run:
    """Reads config and parameters (or their moving average) of a run folder.

    Raises:
      ConfigError: if the folder is not a run or has no checkpoint yet.
    """
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise ConfigError(f"workdir is {str(workdir)!r}, which is not a folder; allowed: a run")
    config = load_json(workdir / "config.json")
    with Checkpoints(workdir) as checkpoints:
        step = checkpoints.latest_step()
        if step is None:
            raise ConfigError(f"workdir {str(workdir)!r} has no checkpoint yet; train it first")
        parameters = checkpoints.restore_parameters(step, abstract_parameters(config.model), ema)
    return Run(config, step, parameters)


def load(workdir: str | Path, *, ema: bool = True) -> DiT:
    """The model of a run folder, ready to be called.

    Args:
      workdir: the run folder.
      ema: the moving average of the parameters rather than the parameters.

    Raises:
      ConfigError: if the folder is not a run or has no checkpoint yet.
    """
    run = load_run(workdir, ema)
    model = DiT(run.config.model, nnx.Rngs(0))
    set_parameters(model, run.parameters)
    return model


def create(name: str, *, seed: int = 0) -> DiT:
    """A published model by name, such as "ProMoE-S/2", with random parameters.

    Raises:
      ConfigError: for an unknown name.
    """
    return DiT(preset(name).model, nnx.Rngs(seed))
