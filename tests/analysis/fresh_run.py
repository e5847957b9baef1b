"""A run folder without training."""

from pathlib import Path

import jax
import numpy as np

from dit_moe.config import Config
from dit_moe.models.parameters import init_parameters
from dit_moe.runs.writer import InMemory, write_run


def write_fresh_run(folder: Path, config: Config) -> Path:
    """Writes a run of random parameters at step 0."""
    arrays = jax.device_get(init_parameters(config.model, jax.random.key(0)))
    shapes = {path: a.shape for path, a in arrays.items()}
    read = lambda path, index: np.ascontiguousarray(arrays[path][index])  # noqa: E731
    write_run(folder, config, None, InMemory(shapes, read))
    return folder
