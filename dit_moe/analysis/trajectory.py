"""Which expert took which patch of the very pictures that a sampler draws, by any solver."""

import jax
import jax.numpy as jnp

from dit_moe.analysis.decisions import decisions, most_experts
from dit_moe.config import ModelConfig
from dit_moe.diffusion.objective import Network
from dit_moe.models.parameters import Parameters, functional
from dit_moe.models.prediction import Prediction


class Recorder:
    """Keeps what a network decides, call by call. To be made, used and read under one `jit`.

    Args:
      model: with experts.
      calls: how often the network is called.
      images: how many of a call are looked at: the first. Those that guidance adds are behind.
    """

    def __init__(self, model: ModelConfig, calls: int, images: int):
        self._model, self._images = model, images
        shape = (calls, len(model.mixtures), images, model.num_tokens)
        self._first = jax.new_ref(jnp.full(shape, most_experts(model), jnp.int16))
        self._calls = jax.new_ref(jnp.int32(0))

    def bind(self, parameters: Parameters) -> Network:
        """The network with these parameters, looked at."""
        predict = functional(self._model)(parameters)

        def network(x: jax.Array, t_N: jax.Array, y_N: jax.Array) -> Prediction:
            prediction = predict(x, t_N, y_N)
            most, tokens = most_experts(self._model), self._model.num_tokens
            seen = decisions(prediction.routing, most, tokens)
            self._first[self._calls[...]] = seen.first[:, : self._images].astype(jnp.int16)
            self._calls[...] += 1
            return prediction

        return network

    def first(self) -> jax.Array:
        """Each patch's expert of largest weight: int16 [V, L, N, S] of V calls and L layers.

        `decisions.most_experts` where a patch has none.
        """
        return self._first[...]
