"""Models to store whose numbers are no zeros."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from dit_moe.config import Config, MoEConfig, PackedConfig
from dit_moe.models.parameters import Parameters, init_parameters
from dit_moe.models.unpacking import packed_kinds, packed_parameters, whole_model
from dit_moe.nn.packed_forms import fresh
from dit_moe.runs.model_folder import write_beside
from dit_moe.runs.open_folder import write_tensors
from tests.tiny import tiny

PACKED = (
    PackedConfig(("*.experts.w_in",), 3, 6),
    PackedConfig(("*feed_forward.experts.w_out",), 4, 6, nested="planes", least=2),
    PackedConfig(("*.attention.*.kernel",), 8, 64),
)
"""Some matrices and not all, in two forms."""
W_IN = "trunk.segments.0.blocks.0.feed_forward.experts.w_in"


def packed(moe: MoEConfig, kinds: tuple[PackedConfig, ...] = PACKED) -> Config:
    """A tiny model with packed matrices."""
    config = tiny(moe)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, packed=kinds))


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
        for path, value in init_parameters(whole_model(config.model), jax.random.key(0)).items()
    }
    for path, (kind, _) in packed_kinds(config.model).items():
        parameters |= packed_parameters(path, fresh(parameters.pop(path), kind).packed)
    if largest is not None:
        parameters[W_IN] = parameters[W_IN].at[1, 2, 3, 4].set(largest)
    folder.mkdir(parents=True)
    arrays = {path: np.asarray(p) for path, p in parameters.items()}
    write_tensors(folder, arrays, config.model, ema=False)
    write_beside(folder, folder, config)
    return parameters
