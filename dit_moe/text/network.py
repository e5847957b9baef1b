"""The network of texts: from a source and a noisy target to the target's embeddings."""

from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dit_moe.models.block import Given
from dit_moe.models.parameters import Parameters
from dit_moe.moe.routing import Routing
from dit_moe.nn.embeddings import TimestepEmbedding, position_embedding
from dit_moe.nn.flat import bind, variables
from dit_moe.nn.linear import linear
from dit_moe.nn.modulation import modulate
from dit_moe.text.config import TextConfig
from dit_moe.text.noise import sqrt_schedule, unseen
from dit_moe.text.spiral import Stream, run_alone, run_spirally, stack, start

_TIME_UNIT = 1000.0
_NORMAL = jax.nn.initializers.normal(0.02)
ENCODER, DECODER = "encoder", "decoder"


class Read(NamedTuple):
    """What of a source is computed once, whatever the target's noise."""

    stream: Stream
    """The source's tokens on their way into the encoder; with `cut`, past it."""
    routing: Routing | None
    """With `cut`, that of the encoder's MoE layers."""


@flax.struct.dataclass
class TextPrediction:
    """The network's output with everything that its layers decided."""

    value: jax.Array
    """[N, S, E] float32: the target's embeddings without noise."""
    encoded: jax.Array
    """[N, S', D]: what the encoder made of the source."""
    routing: dict[str, Routing]
    """Of the MoE layers of `ENCODER` and `DECODER`, stacked; empty where all are dense."""

    @property
    def losses(self) -> dict[str, jax.Array]:
        """Auxiliary losses by name, summed over layers, already scaled."""
        found: dict[str, jax.Array] = {}
        for record in self.routing.values():
            for name, loss_L in record.losses.items():
                found[name] = loss_L.sum() + found.get(name, 0.0)
        return found


class SpiralText(nnx.Module):
    """Predicts the target's embeddings; source and target have one table of these.

    Args:
      config: of the run.
      tokens: V, how many there are.
      rngs: source of the parameters.
    """

    def __init__(self, config: TextConfig, tokens: int, rngs: nnx.Rngs):
        self.config = model = config.model
        self.diffusion = config.diffusion
        width, size = model.width, model.embedding_width
        zeros, dtype = jax.nn.initializers.zeros, jnp.dtype(model.dtype)
        source, target = map(model.sequence, (model.source_length, model.target_length))
        table = jax.random.normal(rngs.params(), (tokens, size))
        self.embedding = nnx.Param(table, axes=(None, None))
        self.source_in = linear(size, width, (None, "embed"), rngs, dtype=dtype)
        self.target_in = linear(2 * size, width, (None, "embed"), rngs, dtype=dtype)
        self.timestep = TimestepEmbedding(width, rngs)
        condition = _NORMAL(rngs.params(), (width,), jnp.float32)
        self.source_condition = nnx.Param(condition, axes=("embed",))
        self.encoder = stack(source, reads=not model.cut, rngs=rngs)
        self.decoder = stack(target, reads=True, rngs=rngs)
        self.modulation = linear(width, 2 * width, ("embed", None), rngs, dtype=dtype, init=zeros)
        self.target_out = linear(width, size, ("embed", None), rngs, init=zeros)
        # Beside the gradient: the step says what they become.
        abar_T = jnp.asarray(sqrt_schedule(self.diffusion.times))
        abar_SxT = jnp.tile(abar_T, (model.target_length, 1))
        self.abar = nnx.Param(abar_SxT, axes=(None, None))
        bins = unseen(config.diffusion.adapt_bins, model.target_length)
        self.error = nnx.Param(bins, axes=(None, None))

    def embeddings(self) -> jax.Array:
        """Those of all tokens, float32 [V, E], each of norm sqrt(E).

        Of one norm, none can shrink to make its noise cheap, and the nearest is that with the
        greatest product.
        """
        table = self.embedding[...]
        size = table.shape[1]
        return table * jax.lax.rsqrt(jnp.square(table).sum(axis=1, keepdims=True) / size)

    def read(self, source_NxS: jax.Array, *, train: bool = False) -> Read:
        """Takes in sources, int32 [N, S]; with `cut`, all of the encoder's work."""
        embedded = self.embeddings()[source_NxS]
        stream = start(_placed(self.source_in(embedded)), self._source)
        if not self.config.cut:
            return Read(stream, None)
        x_NxSxD, routing = run_alone(self.encoder, stream, self._given(stream.x, train))
        return Read(Stream(x_NxSxD, {}), routing)

    def __call__(
        self,
        read: Read,
        x_NxSxE: jax.Array,
        t_N: jax.Array,
        estimate_NxSxE: jax.Array,
        *,
        train: bool = False,
    ) -> TextPrediction:
        """Runs the network.

        Args:
          read: of the sources.
          x_NxSxE: [N, S, E] float32 noisy embeddings of the targets.
          t_N: [N] int32 times, 1 to T.
          estimate_NxSxE: [N, S, E] what it predicted before (self-conditioning), or zeros.
          train: a training step; some routers choose otherwise then.
        """
        both = jnp.concatenate([x_NxSxE, estimate_NxSxE], axis=-1)
        target = start(_placed(self.target_in(both)), self._target)
        condition = self.timestep(t_N * (_TIME_UNIT / self.diffusion.times)).astype(target.x.dtype)
        given = Given(condition, jnp.zeros(len(t_N), bool), train=train)
        if self.config.cut:
            encoded = read.stream.x
            made, chosen = run_alone(self.decoder, target, given, encoded)
            routings = read.routing, chosen
        else:
            (encoded, made), routings = run_spirally(
                self.encoder,
                self.decoder,
                (read.stream, target),
                (self._given(read.stream.x, train), given),
            )
        shift, scale = jnp.split(self.modulation(jax.nn.silu(condition)), 2, axis=-1)
        value = self.target_out(modulate(made, shift, scale).astype(jnp.float32))
        names = zip((ENCODER, DECODER), routings, strict=True)
        return TextPrediction(value, encoded, {k: r for k, r in names if r is not None})

    def logits(self, value_NxSxE: jax.Array) -> jax.Array:
        """How much embeddings are like those of each token: float32 [N, S, V]."""
        return value_NxSxE @ self.embeddings().T

    def round(self, value_NxSxE: jax.Array) -> jax.Array:
        """The tokens with the nearest embeddings: int32 [N, S]."""
        return jnp.argmax(self.logits(value_NxSxE), axis=-1).astype(jnp.int32)

    @property
    def _source(self):
        return self.config.sequence(self.config.source_length)

    @property
    def _target(self):
        return self.config.sequence(self.config.target_length)

    def _given(self, x_NxSxD: jax.Array, train: bool) -> Given:
        """What the encoder's blocks know: no time, which reaches them by the decoder alone."""
        condition = jnp.broadcast_to(self.source_condition[...], (len(x_NxSxD), x_NxSxD.shape[-1]))
        return Given(condition.astype(x_NxSxD.dtype), jnp.zeros(len(x_NxSxD), bool), train=train)


def _placed(x_NxSxD: jax.Array) -> jax.Array:
    positions: np.ndarray = position_embedding((1, x_NxSxD.shape[1]), x_NxSxD.shape[2])
    return x_NxSxD + positions.astype(x_NxSxD.dtype)


def init_parameters(config: TextConfig, tokens: int, key: jax.Array) -> Parameters:
    """Fresh parameters by dotted path; pure."""
    network = SpiralText(config, tokens, nnx.Rngs(params=key))
    return {path: variable[...] for path, variable in variables(network).items()}


def functional(config: TextConfig, tokens: int) -> Callable[[Parameters], SpiralText]:
    """A function from parameters to a network that computes with them; see `models.parameters`."""
    network = nnx.eval_shape(lambda: SpiralText(config, tokens, nnx.Rngs(0)))
    return lambda parameters: bind(network, parameters)


def router_prefix(config: TextConfig, side: str) -> str:
    """What the paths of the parameters of a side's routers begin with."""
    every = 1 if config.model.moe is None else config.model.moe.every
    return f"{side}.blocks.{every - 1}.feed_forward.router."
