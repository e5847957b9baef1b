"""How active the hidden units of a dense network's feed-forwards are."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.config import ModelConfig
from dit_moe.models.block import Given
from dit_moe.models.parameters import functional
from dit_moe.models.trunk import Trunk
from dit_moe.nn.feed_forward import FeedForward

Hear = Callable[[jax.Array], None]


def activations(
    model: ModelConfig,
    parameters: Mapping[str, jax.Array],
    x_NxHxWxC: jax.Array,
    t_N: jax.Array,
    y_N: jax.Array,
) -> tuple[list[jax.Array], jax.Array, Given]:
    """What goes on in a dense network. Usable under jit.

    Args:
      model: without mixtures.
      parameters: of it.
      x_NxHxWxC: as `DiT.__call__`, and so are the others.
      t_N: times.
      y_N: labels.

    Returns:
      The sizes |a(W_in x)| of all hidden units, [N, S, F] float32 of every block in order; the
      tokens [N, S, D] that enter the trunk; and what is given beside them.
    """
    network = functional(model)(dict(parameters))
    tokens, given, _ = network.enter(x_NxHxWxC, t_N, y_N)
    heard: list[jax.Array] = []
    _listen(network.trunk, tokens, given, heard.append)
    return heard, tokens, given


def _listen(trunk: Trunk, x_NxSxD: jax.Array, given: Given, hear: Hear) -> None:
    """Runs a trunk block by block, outside of a scan, which would keep what is heard."""
    for units, segment in zip(trunk.segments, trunk.config.trunk, strict=True):
        graphdef, stacked = nnx.split(units)
        for number in range(segment.repeats):
            unit = nnx.merge(graphdef, jax.tree.map(lambda p, n=number: p[n], stacked))
            for block in unit.blocks:
                assert isinstance(block.feed_forward, FeedForward)
                block.feed_forward = _Heard(block.feed_forward, hear)
                x_NxSxD, _ = block(x_NxSxD, given)


class _Heard(FeedForward):
    """A feed-forward that also tells the sizes of its hidden units."""

    def __init__(self, feed_forward: FeedForward, hear: Hear):
        self.experts, self.hear = feed_forward.experts, hear

    def __call__(self, x: jax.Array) -> jax.Array:
        """The same as without."""
        self.hear(jnp.abs(self.hidden(x).astype(jnp.float32)))
        return super().__call__(x)
