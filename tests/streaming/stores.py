"""Models to store whose numbers are no zeros."""

from pathlib import Path

import jax
import numpy as np

from dit_moe.config import Config
from dit_moe.models.parameters import Parameters, init_parameters
from dit_moe.runs.model_folder import write_beside
from dit_moe.runs.open_folder import write_tensors

W_IN = "trunk.segments.0.blocks.0.feed_forward.experts.w_in"


def write_model(folder: Path, config: Config, largest: float | None = None) -> Parameters:
    """Writes an open folder of parameters that all differ, and returns them.

    Args:
      folder: new.
      config: of the model.
      largest: one number in the experts, where given.
    """
    keys = iter(jax.random.split(jax.random.key(1), 999))
    parameters = {
        path: value + 0.05 * jax.random.normal(next(keys), value.shape)
        for path, value in init_parameters(config.model, jax.random.key(0)).items()
    }
    if largest is not None:
        parameters[W_IN] = parameters[W_IN].at[1, 2, 3, 4].set(largest)
    folder.mkdir(parents=True)
    arrays = {path: np.asarray(p) for path, p in parameters.items()}
    write_tensors(folder, arrays, config.model, ema=False)
    write_beside(folder, folder, config)
    return parameters
