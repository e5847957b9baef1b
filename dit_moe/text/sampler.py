"""Targets from sources: noise, denoised step by step, rounded to tokens."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.config import ConfigError
from dit_moe.models.parameters import Parameters
from dit_moe.text.config import TextConfig
from dit_moe.text.network import functional
from dit_moe.text.noise import posterior

Sampler = Callable[[Parameters, jax.Array, jax.Array], jax.Array]
"""From parameters, sources [N, S] and keys [N] to tokens [N, S'], int32."""


def sampling_times(times: int, steps: int) -> np.ndarray:
    """Times [steps + 1] from T down to 0, as even as whole numbers are: int32.

    Raises:
      ConfigError: there are fewer times than steps.
    """
    if not 1 <= steps <= times:
        raise ConfigError(f"steps is {steps}; allowed: 1 to diffusion.times {times}")
    return np.round(np.linspace(times, 0, steps + 1)).astype(np.int32)


def build_sampler(config: TextConfig, tokens: int, steps: int, *, clamp: bool) -> Sampler:
    """The pure function that draws; an example's noise follows from its own key.

    Args:
      config: of the run.
      tokens: of its vocabulary.
      steps: of the times.
      clamp: every estimate is replaced by the nearest embeddings (Diffusion-LM).

    Raises:
      ConfigError: as of `sampling_times`.
    """
    bind = functional(config, tokens)
    times = sampling_times(config.diffusion.times, steps)
    shape = (config.model.target_length, config.model.embedding_width)
    sees_estimate = config.diffusion.self_condition > 0

    def noise(key_N: jax.Array, step: jax.Array | int) -> jax.Array:
        return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, step), shape))(key_N)

    def sample(parameters: Parameters, source_NxS: jax.Array, key_N: jax.Array) -> jax.Array:
        network = bind(parameters)
        read, abar_SxT = network.read(source_NxS), network.abar[...]

        def step(
            carry: tuple[jax.Array, jax.Array], place: tuple[jax.Array, jax.Array, jax.Array]
        ) -> tuple[tuple[jax.Array, jax.Array], None]:
            (x, estimate), (number, now, then) = carry, place
            value = network(read, x, jnp.full(len(x), now), estimate).value
            clean = network.embeddings()[network.round(value)] if clamp else value
            mean, deviation = posterior(x, clean, abar_SxT[:, now], abar_SxT[:, then])
            x = mean + deviation * noise(key_N, number)
            return (x, clean if sees_estimate else estimate), None

        x = noise(key_N, 0)
        places = jnp.arange(1, steps + 1), jnp.asarray(times[:-1]), jnp.asarray(times[1:])
        (x, _), _ = jax.lax.scan(step, (x, jnp.zeros_like(x)), places)
        return network.round(x)

    return sample
