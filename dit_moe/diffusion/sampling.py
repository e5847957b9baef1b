"""Objectives by config, and samples from them by name of the solver."""

import jax

from dit_moe.config import SOLVERS, DDPMConfig, ObjectiveConfig
from dit_moe.diffusion.ddpm import DDPM
from dit_moe.diffusion.denoiser import Denoiser, unit_variance
from dit_moe.diffusion.rectified_flow import RectifiedFlow
from dit_moe.diffusion.solvers import ODE_SOLVERS, ancestral, step_noise


def build_objective(config: ObjectiveConfig) -> DDPM | RectifiedFlow:
    """The objective that the config describes."""
    return DDPM(config) if isinstance(config, DDPMConfig) else RectifiedFlow(config)


def sample(
    objective: DDPM | RectifiedFlow,
    denoiser: Denoiser,
    key_N: jax.Array,
    y_N: jax.Array,
    shape: tuple[int, int, int],
    solver: str,
    steps: int,
) -> jax.Array:
    """Draws images. Pure; an image depends on its own key and label, not on the batch.

    Args:
      objective: the one that the network was trained with.
      denoiser: `objective.denoiser(network)`, possibly guided.
      key_N: [N] random keys.
      y_N: [N] int32 labels.
      shape: (H, W, C) of an image.
      solver: one of `SOLVERS[objective.config.name]`.
      steps: of the solver, 1 or more; under DDPM at most the objective's timesteps.

    Returns:
      [N, H, W, C] float32.

    Raises:
      ValueError: the objective has no such solver, or not so many steps.
    """
    solvers = SOLVERS[objective.config.name]
    if solver not in solvers:
        raise ValueError(
            f"solver is {solver!r} for {objective.config.name!r}; allowed: {', '.join(solvers)}"
        )
    most = objective.config.timesteps if isinstance(objective, DDPM) else None
    if steps < 1 or (most is not None and steps > most):
        raise ValueError(f"steps is {steps}; allowed: 1 {f'to {most}' if most else 'or more'}")
    noise = step_noise(key_N, 0, shape)
    if isinstance(objective, DDPM) and solver == "ancestral":
        return ancestral(objective, denoiser, noise, key_N, y_N, steps)
    times = objective.times(steps)
    z = noise / unit_variance(times[0])
    return ODE_SOLVERS[solver](denoiser, z, key_N, y_N, times)
