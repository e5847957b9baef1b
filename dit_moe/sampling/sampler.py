"""From parameters to images: a jitted sampler, and sets of any size made in batches."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from dit_moe.config import Config, ConfigError, GuidanceSchedule, SolverConfig
from dit_moe.devices import hosts
from dit_moe.diffusion.denoiser import Denoiser
from dit_moe.diffusion.guidance import Guidance, against, against_null_label, guide
from dit_moe.diffusion.integrate import build_objective, sample
from dit_moe.diffusion.measurements import fit, steer_by_measurement
from dit_moe.models.parameters import Parameters, functional
from dit_moe.models.prediction import Prediction
from dit_moe.sampling.guides import check_guidance, weakly_routed
from dit_moe.sampling.known_images import Steering
from dit_moe.storage import images

Sampler = Callable[..., jax.Array]
"""See `build_sampler`."""

MAX_SAMPLES = 10**8
"""Labels of all are in memory, and an image's number must fit into 32 bits of its key."""


@dataclasses.dataclass(frozen=True)
class Request:
    """Which images to make, and how. The same request gives the same images."""

    num_samples: int
    classes: tuple[int, ...]
    """Image i has class classes[i % len(classes)]."""
    guidance_scale: float
    integration: SolverConfig
    """Resolved: solver, steps and options."""
    seed: int
    guidance_channels: Literal["all", "first_three"] = "all"
    guidance: str = "cfg"
    """One of `guides.GUIDES`."""
    guidance_schedule: GuidanceSchedule = "constant"
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0
    weak_routing: str | None = None
    """One of `guides.WEAK_ROUTINGS`, with guidance `self_contrast`."""

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
    time_grid: str | None = None,
    eta: float | None = None,
    tolerance: float | None = None,
    shift: float | None = None,
    seed: int = 0,
    guidance_channels: Literal["all", "first_three"] = "all",
    guidance: str = "cfg",
    guidance_schedule: GuidanceSchedule | None = None,
    guidance_interval: Sequence[float] | None = None,
    guidance_rescale: float | None = None,
    weak_routing: str | None = None,
) -> Request:
    """Fills what is not given from the config; no classes means all of them.

    Raises:
      ConfigError: naming the value that cannot be used.
    """
    integration = config.sample.updated(
        config.objective,
        solver=solver,
        steps=steps,
        time_grid=time_grid,
        eta=eta,
        tolerance=tolerance,
        shift=shift,
    )
    num_classes = config.model.num_classes
    scale = config.sample.guidance_scale if guidance_scale is None else guidance_scale
    schedule = guidance_schedule or config.sample.guidance_schedule
    interval = config.sample.guidance_interval if guidance_interval is None else guidance_interval
    rescale = config.sample.guidance_rescale if guidance_rescale is None else guidance_rescale
    wrong = [c for c in classes if not 0 <= c < num_classes]
    if wrong:
        raise ConfigError(f"classes has {wrong[0]}; allowed: 0 to {num_classes - 1}")
    if not 1 <= num_samples <= MAX_SAMPLES:
        raise ConfigError(f"num_samples is {num_samples}; allowed: 1 to {MAX_SAMPLES}")
    weak_routing = check_guidance(
        config,
        guidance=guidance,
        scale=scale,
        schedule=schedule,
        interval=interval,
        rescale=rescale,
        channels=guidance_channels,
        weak_routing=weak_routing,
    )
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed is {seed}; allowed: 0 to {2**32 - 1}")
    return Request(
        num_samples=num_samples,
        classes=tuple(classes) or tuple(range(num_classes)),
        guidance_scale=scale,
        integration=integration,
        seed=seed,
        guidance_channels=guidance_channels,
        guidance=guidance,
        guidance_schedule=schedule,
        guidance_interval=(interval[0], interval[1]),
        guidance_rescale=rescale,
        weak_routing=weak_routing,
    )


def build_sampler(
    config: Config,
    request: Request,
    *,
    weaker: Config | None = None,
    steering: Steering | None = None,
) -> Sampler:
    """The jitted function that draws a batch: x [N, H, W, C] float32.

    Its arguments are parameters, keys [N] and labels [N]; then, by name, `weaker`, the parameters
    of the network that guides, and `measured`, what is known of every image (`Steering.measured`).

    Args:
      config: of the run.
      request: what to draw.
      weaker: with guidance `auto`, the config of the network that guides.
      steering: what samples are held to.
    """
    bind = functional(config.model)
    objective = build_objective(config.objective)
    model = config.model
    shape = (model.image_size, model.image_size, model.channels)
    if request.guidance == "auto":
        assert weaker is not None
        weak_bind = functional(weaker.model)
        weak_objective = build_objective(weaker.objective)
    elif request.guidance == "self_contrast":
        assert request.weak_routing is not None
        weak_bind = functional(weakly_routed(model, request.weak_routing))
        weak_objective = objective
    else:
        weak_bind = weak_objective = None

    @jax.jit
    def sampler(
        parameters: Parameters,
        key_N: jax.Array,
        y_N: jax.Array,
        weaker: Parameters | None = None,
        measured: jax.Array | None = None,
    ) -> jax.Array:
        denoiser = objective.denoiser(bind(parameters))
        weak = None
        if weak_bind is not None and weak_objective is not None:
            weak = weak_objective.denoiser(weak_bind(parameters if weaker is None else weaker))
        denoiser = _guided(request, denoiser, weak, model.null_label)
        if steering is not None:
            assert measured is not None
            denoiser = steer_by_measurement(
                denoiser, steering.measurement, measured, steering.strength
            )
        integration = dataclasses.asdict(request.integration)
        x_NxHxWxC = sample(objective, denoiser, key_N, y_N, shape, **integration)
        if steering is not None and measured is not None and steering.strength == 1:
            x_NxHxWxC = fit(steering.measurement, x_NxHxWxC, measured)
        return x_NxHxWxC

    return sampler


def _guided(
    request: Request, denoiser: Denoiser, weak: Denoiser | None, null_label: int
) -> Denoiser:
    """As requested, by the weak network, or by the network itself without a class."""
    contrast = against(denoiser, weak) if weak else against_null_label(denoiser, null_label)
    guidance = Guidance(
        request.guidance_scale,
        request.guidance_schedule,
        request.guidance_interval,
        request.guidance_rescale,
        request.guidance_channels,
    )
    return guide(denoiser, contrast, guidance)


def function_evaluations(config: Config, request: Request) -> int | None:
    """Passes through a network that an image takes, those that guide it included.

    They are counted, with a network that does nothing. None: they depend on the image (dopri5).
    """
    if request.integration.solver == "dopri5":
        return None
    passes = jax.new_ref(jnp.int32(0))

    def network(x_NxHxWxC: jax.Array, t_N: jax.Array, y_N: jax.Array) -> Prediction:
        passes[...] += len(y_N)
        value = jnp.zeros((*x_NxHxWxC.shape[:-1], config.model.out_channels))
        return Prediction(value, routing=(), losses={})

    objective = build_objective(config.objective)
    denoiser = objective.denoiser(network)
    weak = None if request.guidance == "cfg" else denoiser
    denoiser = _guided(request, denoiser, weak, config.model.null_label)
    integration = dataclasses.asdict(request.integration)
    key_N, y_N = jax.random.split(jax.random.key(0), 1), jnp.zeros(1, jnp.int32)
    shape = (1, 1, config.model.channels)
    jax.jit(lambda: sample(objective, denoiser, key_N, y_N, shape, **integration))()
    return int(passes[...])


def generate(
    sampler: Sampler,
    parameters: Parameters,
    request: Request,
    batch_size: int,
    *,
    start: int = 0,
    sharding: NamedSharding | None = None,
    steering: Steering | None = None,
) -> Iterator[np.ndarray]:
    """Yields images from number `start` on, batch by batch, float32 [n, H, W, C].

    Image i depends on the request's seed and i alone, so any start and any batch size (up to
    floating-point rounding) give the same image. `sharding` spreads a batch over devices.
    `steering` is what the sampler was built with.

    Raises:
      NotFiniteError: a batch has values that are NaN or infinite.
    """
    labels = request.labels()

    @functools.partial(jax.jit, out_shardings=sharding)
    def spread(
        index_N: jax.Array, y_N: jax.Array, measured: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        key = jax.random.key(request.seed)
        return jax.vmap(lambda i: jax.random.fold_in(key, i))(index_N), y_N, measured

    for first in range(start, request.num_samples, batch_size):
        # The last batch is filled up, so that the sampler is compiled once.
        index_N = np.arange(first, first + batch_size)
        number_N = index_N % request.num_samples
        measured = None if steering is None else steering.measured(number_N)
        key_N, y_N, measured = spread(index_N, labels[number_N], measured)
        x_NxHxWxC = sampler(parameters, key_N, y_N, measured=measured)
        drawn = hosts.fetch(x_NxHxWxC)[: request.num_samples - first]
        images.check_finite(drawn, f"samples from number {first:,} on")
        yield drawn


def round_up(batch_size: int, devices: int) -> int:
    """The next batch size that divides evenly over the devices."""
    return -(-batch_size // devices) * devices
