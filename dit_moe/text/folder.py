"""A run on texts as it is found again on disk."""

from pathlib import Path
from typing import NamedTuple

import jax

from dit_moe.config import ConfigError
from dit_moe.config.files import read_config
from dit_moe.models.parameters import Parameters
from dit_moe.runs.checkpoints import Checkpoints, on_one_device
from dit_moe.runs.ema_start import start_warning
from dit_moe.runs.loading import check_finite
from dit_moe.text.config import TextConfig
from dit_moe.text.network import init_parameters
from dit_moe.text.vocabulary import Vocabulary, read_vocabulary

VOCABULARY = "vocabulary.json"


class TextRun(NamedTuple):
    """What the folder holds at one of its checkpoints."""

    config: TextConfig
    vocabulary: Vocabulary
    step: int
    parameters: Parameters


def load_text_run(workdir: Path, *, ema: bool = True, checkpoint: str = "newest") -> TextRun:
    """Reads a run; says so if much of its average still is its start.

    Args:
      workdir: the folder.
      ema: the moving average of the parameters rather than the parameters.
      checkpoint: see `Checkpoints.find`.

    Raises:
      ConfigError: the folder is no run on texts, has no such checkpoint, or is damaged.
    """
    if not workdir.is_dir():
        raise ConfigError(
            f"workdir is {str(workdir)!r}, which is not a folder; allowed: a run of "
            "python -m dit_moe.text train"
        )
    config = read_config(workdir / "config.json", TextConfig)
    vocabulary = read_vocabulary(workdir / VOCABULARY)
    shapes = jax.eval_shape(lambda: init_parameters(config, len(vocabulary), jax.random.key(0)))
    with Checkpoints(workdir) as checkpoints:
        step = checkpoints.find(checkpoint)
        parameters = checkpoints.restore_parameters(step, on_one_device(shapes), ema)
    check_finite(parameters, f"{workdir} at step {step:,}")
    if ema and (warning := start_warning(config.train, step)):
        print(f"{workdir}: {warning}")
    return TextRun(config, vocabulary, step, parameters)
