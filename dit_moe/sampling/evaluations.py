"""How often networks are asked while an image is drawn, and for how many images at once.

They are counted, with a network that does nothing, whatever the solver does.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.config import ModelConfig, ObjectiveConfig
from dit_moe.diffusion.integrate import build_objective, sample
from dit_moe.models.prediction import Prediction
from dit_moe.sampling.guides import guided
from dit_moe.sampling.request import Request

Count = Callable[[int], None]
"""Told how many images a network is asked for."""


def function_evaluations(
    model: ModelConfig, objective: ObjectiveConfig, request: Request
) -> int | None:
    """Passes through a network that an image takes, those that guide it included.

    None: they depend on the image (dopri5).
    """
    if request.integration.solver == "dopri5":
        return None
    passes = jax.new_ref(jnp.int32(0))

    def count(images: int) -> None:
        passes[...] += images

    _draw(model, objective, request, count, count)
    return int(passes[...])


def rows_of_evaluations(
    model: ModelConfig, objective: ObjectiveConfig, request: Request
) -> tuple[np.ndarray, np.ndarray]:
    """How often an image is in the batch of each evaluation, 2 with and without its class.

    Args:
      model: that draws.
      objective: it was trained with.
      request: with a solver whose steps do not depend on the image.

    Returns:
      Of the network itself and of another that guides it, [E] int32 each.
    """
    _, numbers = _recorded(model, objective, request, (1, 1))
    return _recorded(model, objective, request, numbers)[0]


def _recorded(
    model: ModelConfig, objective: ObjectiveConfig, request: Request, sizes: tuple[int, int]
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[int, int]]:
    """The images of so many evaluations of both networks, and how many there were."""
    rows = [jax.new_ref(jnp.zeros(max(size, 1), jnp.int32)) for size in sizes]
    numbers = [jax.new_ref(jnp.int32(0)) for _ in sizes]

    def recording(which: int) -> Count:
        def count(images: int) -> None:
            number = numbers[which][...]
            rows[which][number] = jnp.int32(images)
            numbers[which][...] = number + 1

        return count

    _draw(model, objective, request, recording(0), recording(1))
    of_itself, of_guide = (np.asarray(r[...])[:size] for r, size in zip(rows, sizes, strict=True))
    return (of_itself, of_guide), (int(numbers[0][...]), int(numbers[1][...]))


def _draw(
    model: ModelConfig, objective: ObjectiveConfig, request: Request, strong: Count, weak: Count
) -> None:
    """Draws one image of a single pixel."""
    built = build_objective(objective)

    def counted(count: Count) -> Callable[..., Prediction]:
        def network(x: jax.Array, t_N: jax.Array, y_N: jax.Array) -> Prediction:
            count(len(y_N))
            value = jnp.zeros((*x.shape[:-1], model.out_channels))
            return Prediction(value, routing=(), losses={})

        return network

    guide = None if request.guidance.guide == "cfg" else built.denoiser(counted(weak))
    denoiser = built.denoiser(counted(strong))
    denoiser = guided(denoiser, guide, model.null_label, request.guidance)
    integration = dataclasses.asdict(request.integration)
    key_N, y_N = jax.random.split(jax.random.key(0), 1), jnp.zeros(1, jnp.int32)
    shape = (model.channels,)
    jax.jit(lambda: sample(built, denoiser, key_N, y_N, shape, **integration))()
