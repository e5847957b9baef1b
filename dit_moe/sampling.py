"""From parameters to images: a jitted sampler, and sets of any size made in batches."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import jax
import numpy as np
from jax.sharding import NamedSharding

from dit_moe import hosts
from dit_moe.config import SOLVERS, Config, ConfigError
from dit_moe.diffusion.guidance import classifier_free
from dit_moe.diffusion.sampling import build_objective, sample
from dit_moe.nn.parameters import Parameters, functional

Sampler = Callable[[Parameters, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Request:
    """Which images to make, and how. The same request gives the same images."""

    num_samples: int
    classes: tuple[int, ...]
    """Image i has class classes[i % len(classes)]."""
    guidance_scale: float
    solver: str
    steps: int
    seed: int
    guidance_channels: Literal["all", "first_three"] = "all"

    def labels(self) -> np.ndarray:
        """The int32 label of every image."""
        return np.resize(np.asarray(self.classes, np.int32), self.num_samples)


def build_request(
    config: Config,
    *,
    num_samples: int,
    classes: Sequence[int] = (),
    guidance_scale: float | None = None,
    solver: str | None = None,
    steps: int | None = None,
    seed: int = 0,
    guidance_channels: Literal["all", "first_three"] = "all",
) -> Request:
    """Fills what is not given from the config; no classes means all of them.

    Raises:
      ConfigError: naming the value that cannot be used.
    """
    solver = solver or config.sample.solver
    solver = SOLVERS[config.objective.name][0] if solver == "auto" else solver
    steps = config.sample.steps if steps is None else steps
    num_classes = config.model.num_classes
    scale = config.sample.guidance_scale if guidance_scale is None else guidance_scale
    if solver not in SOLVERS[config.objective.name]:
        raise ConfigError(
            f"solver is {solver!r} for a model trained with {config.objective.name!r}; "
            f"allowed: {', '.join(SOLVERS[config.objective.name])}"
        )
    most = config.objective.timesteps if config.objective.name == "ddpm" else None
    if steps < 1 or (most is not None and steps > most):
        raise ConfigError(f"steps is {steps}; allowed: 1 {f'to {most}' if most else 'or more'}")
    wrong = [c for c in classes if not 0 <= c < num_classes]
    if wrong:
        raise ConfigError(f"classes has {wrong[0]}; allowed: 0 to {num_classes - 1}")
    if num_samples < 1:
        raise ConfigError(f"num_samples is {num_samples}; allowed: 1 or more")
    if not (math.isfinite(scale) and scale >= 0):
        raise ConfigError(f"guidance_scale is {scale}; allowed: 0 or more (1 is no guidance)")
    channels = config.model.channels
    if guidance_channels == "first_three" and channels < 3:
        raise ConfigError(
            f"guidance_channels is 'first_three' but the model has {channels} "
            f"channel{'s' * (channels > 1)}; allowed: all"
        )
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed is {seed}; allowed: 0 to {2**32 - 1}")
    return Request(
        num_samples=num_samples,
        classes=tuple(classes) or tuple(range(num_classes)),
        guidance_scale=scale,
        solver=solver,
        steps=steps,
        seed=seed,
        guidance_channels=guidance_channels,
    )


def build_sampler(config: Config, request: Request) -> Sampler:
    """The jitted function from parameters, keys [N] and labels [N] to x [N, H, W, C] float32."""
    bind = functional(config.model)
    objective = build_objective(config.objective)
    model = config.model
    shape = (model.image_size, model.image_size, model.channels)

    @jax.jit
    def sampler(parameters: Parameters, key_N: jax.Array, y_N: jax.Array) -> jax.Array:
        denoiser = classifier_free(
            objective.denoiser(bind(parameters)),
            request.guidance_scale,
            model.null_label,
            channels=request.guidance_channels,
        )
        return sample(objective, denoiser, key_N, y_N, shape, request.solver, request.steps)

    return sampler


def generate(
    sampler: Sampler,
    parameters: Parameters,
    request: Request,
    batch_size: int,
    *,
    start: int = 0,
    sharding: NamedSharding | None = None,
) -> Iterator[np.ndarray]:
    """Yields images from number `start` on, batch by batch, float32 [n, H, W, C].

    Image i depends on the request's seed and i alone, so any start and any batch size (up to
    floating-point rounding) give the same image. `sharding` spreads a batch over devices.
    """
    labels = request.labels()

    @functools.partial(jax.jit, out_shardings=sharding)
    def spread(index_N: jax.Array, y_N: jax.Array) -> tuple[jax.Array, jax.Array]:
        key = jax.random.key(request.seed)
        return jax.vmap(lambda i: jax.random.fold_in(key, i))(index_N), y_N

    for first in range(start, request.num_samples, batch_size):
        # The last batch is filled up, so that the sampler is compiled once.
        index_N = np.arange(first, first + batch_size)
        y_N = labels[index_N % request.num_samples]
        x_NxHxWxC = sampler(parameters, *spread(index_N, y_N))
        yield hosts.fetch(x_NxHxWxC)[: request.num_samples - first]


def round_up(batch_size: int, devices: int) -> int:
    """The next batch size that divides evenly over the devices."""
    return -(-batch_size // devices) * devices
