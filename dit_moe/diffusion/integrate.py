"""Objectives by config, and samples from them by name of the solver."""

from typing import Any

import jax
import numpy as np

from dit_moe.config import DDPMConfig, ObjectiveConfig, RectifiedFlowConfig, SolverConfig
from dit_moe.diffusion.ddpm import DDPM
from dit_moe.diffusion.denoiser import Denoiser, unit_variance
from dit_moe.diffusion.objective import Objective
from dit_moe.diffusion.rectified_flow import RectifiedFlow
from dit_moe.diffusion.solvers import ancestral, build_solver, step_noise
from dit_moe.diffusion.time_grids import shifted, time_grid


def build_objective(config: ObjectiveConfig) -> Objective:
    """The objective that the config describes."""
    if isinstance(config, DDPMConfig):
        return DDPM(config)
    assert isinstance(config, RectifiedFlowConfig)
    return RectifiedFlow(config)


def start_noise(key_N: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The noise in which the path of each key begins: standard normal [N, *shape] float32."""
    return step_noise(key_N, 0, shape)


def solver_times(objective: Objective, config: SolverConfig) -> np.ndarray:
    """The times of a solver, resolved for its objective and not `ancestral`: float32, descending to
    0."""
    if config.time_grid is None:  # the solver takes the ends and finds its own way
        return shifted(objective, config.steps, 1.0)
    return time_grid(objective, config.time_grid, config.steps, config.shift)


def sample(
    objective: Objective,
    denoiser: Denoiser,
    key_N: jax.Array,
    y_N: jax.Array,
    shape: tuple[int, ...],
    solver: str,
    steps: int,
    noise: jax.Array | None = None,
    **options: Any,
) -> jax.Array:
    """Draws examples. Pure; each depends on its own key and label, not on the batch.

    Args:
      objective: the one that the network was trained with.
      denoiser: `objective.denoiser(network)`, possibly guided.
      key_N: [N] random keys.
      y_N: [N] int32 labels.
      shape: of an example, of any rank: (H, W, C) of an image, (S, D) of tokens, (D,).
      solver: as of `SolverConfig`, like the following.
      steps: of the solver.
      noise: where the paths begin, [N, *shape] float32; None: each key's own, `start_noise`.
      options: what else the solver has.

    Returns:
      [N, *shape] float32.

    Raises:
      ConfigError: the objective has no such solver, or the solver no such option or value.
    """
    config = SolverConfig(solver, steps, **options).resolve(objective.config)
    noise = start_noise(key_N, shape) if noise is None else noise
    if isinstance(objective, DDPM) and config.solver == "ancestral":
        return ancestral(objective, denoiser, noise, key_N, y_N, steps)
    times = solver_times(objective, config)
    z = noise / unit_variance(times[0])
    lowest, _ = objective.time_range
    return build_solver(config, lowest)(denoiser, z, key_N, y_N, times)
