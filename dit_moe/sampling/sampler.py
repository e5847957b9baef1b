"""From parameters to images: a jitted sampler, and sets of any size made in batches."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding

from dit_moe.config import Config, ConfigError
from dit_moe.devices import hosts
from dit_moe.diffusion.integrate import build_objective, sample
from dit_moe.diffusion.measurements import fit, steer_by_losses, steer_by_measurement
from dit_moe.diffusion.objective import Network
from dit_moe.models.parameters import Parameters, functional
from dit_moe.sampling.caches import open_caches
from dit_moe.sampling.guides import BuildNetwork, build_weak_network, guided
from dit_moe.sampling.known_images import Hold, Steering
from dit_moe.sampling.losses import SteeringLoss
from dit_moe.sampling.request import Request
from dit_moe.storage import images

MAX_BATCH = 2**16

Sampler = Callable[..., jax.Array]
"""See `build_sampler`."""


def build_sampler(
    config: Config,
    request: Request,
    *,
    weaker: Config | None = None,
    steering: Hold | None = None,
    losses: Sequence[SteeringLoss] = (),
    bind: Callable[[Parameters], Network] | None = None,
    network: BuildNetwork = functional,
) -> Sampler:
    """The jitted function that draws a batch: x [N, H, W, C] float32.

    Its arguments are parameters, keys [N] and labels [N]; then, by name, `weaker`, the parameters
    of the network that guides, `measured`, what is known of every image (`Steering.measured`), and
    `noise`, as of `diffusion.integrate.sample`.

    Args:
      config: of the run.
      request: what to draw.
      weaker: with guidance `auto`, the config of the network that guides.
      steering: what samples are held to.
      losses: what is lowered, before samples are held to anything.
      bind: from the parameters to the network; None: what `network` makes of the config.
      network: as of `build_weak_network`.
    """
    bind = bind or network(config.model)
    objective = build_objective(config.objective)
    model = config.model
    build_weak = build_weak_network(config, request.guidance, weaker, network)
    caches = open_caches(config, request, weaker)

    @jax.jit
    def sampler(
        parameters: Parameters,
        key_N: jax.Array,
        y_N: jax.Array,
        weaker: Parameters | None = None,
        measured: jax.Array | None = None,
        noise: jax.Array | None = None,
    ) -> jax.Array:
        network, weaker = bind(parameters), parameters if weaker is None else weaker
        if caches is None:
            weak = build_weak and build_weak(weaker)
        else:
            network = caches.around(network, len(y_N))
            weak = build_weak and build_weak(weaker, caches.around_guide(len(y_N)))
        denoiser = objective.denoiser(network)
        denoiser = guided(denoiser, weak, model.null_label, request.guidance)
        denoiser = steer_by_losses(denoiser, [loss.of(y_N) for loss in losses])
        if steering is not None:
            assert measured is not None
            denoiser = steer_by_measurement(
                denoiser, steering.measurement, measured, steering.strength
            )
        integration = dataclasses.asdict(request.integration)
        shape = model.image_shape
        x_NxHxWxC = sample(objective, denoiser, key_N, y_N, shape, noise=noise, **integration)
        if steering is not None and measured is not None and steering.strength == 1:
            x_NxHxWxC = fit(steering.measurement, x_NxHxWxC, measured)
        return x_NxHxWxC

    return sampler


def image_keys(seed: int, index_N: jax.typing.ArrayLike) -> jax.Array:
    """The random key [N] of each of the images with these numbers."""
    key = jax.random.key(seed)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index_N)


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
        return image_keys(request.seed, index_N), y_N, measured

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


@contextlib.contextmanager
def fitting(batch_size: int) -> Iterator[None]:
    """Within the block a lack of memory is the user's error, who chose the batch size.

    Raises:
      ConfigError: the devices lack memory.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ConfigError(
            f"batch_size is {batch_size}, for which the devices lack memory; allowed: a smaller one"
        ) from error


def round_up(batch_size: int, devices: int) -> int:
    """The next batch size that divides evenly over the devices."""
    return -(-batch_size // devices) * devices
