"""From a network of pairs to pairs: a jitted sampler."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from dit_moe.config import Config, ConfigError, SolverConfig
from dit_moe.diffusion.denoiser import unit_variance
from dit_moe.diffusion.integrate import build_objective, sample, solver_times, start_noise
from dit_moe.diffusion.objective import Network, Objective
from dit_moe.models.parameters import Parameters, functional
from dit_moe.pairs.denoise import Stream, guided_rows, of_streams
from dit_moe.sampling.request import Request

Streams = Sequence[Stream]
"""Of the images of a pair, the first one first."""


def build_pairs_sampler(
    config: Config,
    request: Request,
    streams: Callable[..., Streams],
    *,
    joint_scale: float = 1.0,
    condition_scale: float = 0.0,
    bind: Callable[[Parameters], Network] | None = None,
) -> Callable[..., jax.Array]:
    """The jitted function from parameters, keys [N], labels [N] and what `streams` takes to pairs
    x [N, I, H, W, C] float32 of I images each: two, or more where models are combined.

    Args:
      config: of the run.
      request: what to draw; guidance by `cfg` alone.
      streams: what becomes of the images of a pair, from arrays; the same but for these in every
        call.
      joint_scale: the factor of what they find in each other.
      condition_scale: see `guided_rows`.
      bind: from the parameters to the network, which knows `joint_scale`; None: the config's.

    Raises:
      ConfigError: the guide is no network of pairs.
    """
    guidance, integration = request.guidance, request.integration
    if guidance.guide != "cfg":
        raise ConfigError(f"guidance is {guidance.guide!r} for pairs; allowed: 'cfg'")
    bind = bind or functional(config.model)
    objective, shape = build_objective(config.objective), config.model.image_shape

    @jax.jit
    def sampler(
        parameters: Parameters, key_N: jax.Array, y_N: jax.Array, *given: jax.Array
    ) -> jax.Array:
        images, network = streams(*given), bind(parameters)
        joined, apart = (
            objective.denoiser(functools.partial(network, joint_scale=scale))
            for scale in (joint_scale, 0.0)
        )
        rows = guided_rows(joined, apart, config.model.null_label, guidance, condition_scale)
        drawn = [s for s in images if s.drawn]
        of_drawn = (len(drawn), *shape)
        noise = start_noise(key_N, of_drawn)
        starts = [_start(s, noise[:, i], objective, integration) for i, s in enumerate(drawn)]
        x = sample(
            objective,
            of_streams(rows, images),
            key_N,
            y_N,
            of_drawn,
            noise=jnp.stack(starts, axis=1),
            **dataclasses.asdict(integration),
        )
        return _whole(images, x)

    return sampler


def _start(
    stream: Stream, noise: jax.Array, objective: Objective, integration: SolverConfig
) -> jax.Array:
    """What `diffusion.integrate.sample` takes for the noise of an image."""
    if stream.level == 1:
        return noise
    t = solver_times(objective, integration)[0]
    return unit_variance(t) * stream.start(noise, t)


def check_levels(request: Request, levels: Sequence[float]) -> None:
    """Checks that the solver can draw images of these levels.

    Raises:
      ConfigError: it adds noise to images, of which one starts between noise and data.
    """
    solver, eta = request.integration.solver, request.integration.eta
    if any(0 < level < 1 for level in levels) and (
        solver in ("ancestral", "euler_maruyama") or eta
    ):
        raise ConfigError(
            f"solver is {solver!r}, which adds noise on its way, with a second image that starts "
            "between noise and data; allowed: a solver without, such as heun"
        )


def _whole(streams: Streams, x: jax.Array) -> jax.Array:
    """All images of every pair, from those that were drawn: [N, I, H, W, C]."""
    drawn = iter(jnp.moveaxis(x, 1, 0))
    whole = []
    for stream in streams:
        image = next(drawn) if stream.drawn else stream.given
        assert image is not None
        if stream.mask is not None and stream.known is not None:
            image = stream.mask.project(image, stream.known)
        whole.append(image)
    return jnp.stack(whole, axis=1)
