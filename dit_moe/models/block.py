"""The transformer block with adaLN-zero."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dit_moe.config import ModelConfig, MoEConfig
from dit_moe.moe.exchange import Travel
from dit_moe.moe.layer import MoELayer
from dit_moe.moe.routing import Conditioning, Routing
from dit_moe.nn.attention import Attention
from dit_moe.nn.feed_forward import FeedForward
from dit_moe.nn.joint_attention import JointAttention
from dit_moe.nn.linear import linear
from dit_moe.nn.modulation import modulate


@dataclasses.dataclass(frozen=True)
class Given:
    """What a block may know beside the tokens of N sequences."""

    condition: jax.Array
    """[N, D]: time, class or whatever else modulates and gates."""
    is_null: jax.Array
    """[N] bool: the condition has no class."""
    angles: np.ndarray | None = None
    """[S, head / 2]: by how much attention turns queries and keys; None: not at all."""
    train: bool = False
    """A training step; some routers choose otherwise then (DiffMoE)."""
    previous: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
    """What the router before has handed on; see `Conditioning.previous`."""
    joint_scale: float = 1.0
    """How much the two images of a pair attend to each other; see `JointAttention`."""
    decided: Routing | None = None
    """What the router before the trunk has decided (`ModelConfig.pregate`)."""


@flax.struct.dataclass
class Outputs:
    """What the parts of a block gave, before their gates, in the dtype of the computation."""

    attention: jax.Array
    """[N, S, D]."""
    feed_forward: jax.Array
    """[N, S, D]."""


class Block(nnx.Module):
    """Attention and a feed-forward, dense or MoE, each modulated and gated by the condition."""

    def __init__(self, config: ModelConfig, moe: MoEConfig | None, rngs: nnx.Rngs):
        width, dtype = config.width, jnp.dtype(config.dtype)
        pairs = config.pairs
        self.attention = (
            Attention(config, rngs) if pairs is None else JointAttention(config, pairs, rngs)
        )
        if moe is not None:
            within = config.exchange_within or 1
            travel = Travel(config.forward_rounds, config.backward_rounds, within)
            self.feed_forward = MoELayer(moe, width, rngs, travel, routes=config.pregate is None)
        else:
            hidden = int(config.mlp_ratio * width)
            self.feed_forward = FeedForward(config.mlp_activation, width, hidden, rngs)
        zeros = jax.nn.initializers.zeros
        self.modulation = linear(width, 6 * width, ("embed", None), rngs, dtype=dtype, init=zeros)
        guess = moe and moe.router.guess(width)
        self.guess = guess and linear(guess.width, config.patch_features, ("embed", None), rngs)

    def __call__(self, x_NxSxD: jax.Array, given: Given) -> tuple[jax.Array, Routing | None]:
        """Updates tokens [N, S, D] under what is given; a dense block has no routing."""
        return self.with_outputs(x_NxSxD, given)[:2]

    def with_outputs(
        self, x_NxSxD: jax.Array, given: Given
    ) -> tuple[jax.Array, Routing | None, Outputs]:
        """The same, and what the parts gave."""
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self._modulations(given)
        attended = self._attended(modulate(x_NxSxD, shift_a, scale_a), given)
        x_NxSxD += gate_a[:, None] * attended
        fed, routing = self._fed(modulate(x_NxSxD, shift_f, scale_f), given)
        return x_NxSxD + gate_f[:, None] * fed, routing, Outputs(attended, fed)

    def with_known(self, x_NxSxD: jax.Array, given: Given, known: Outputs) -> jax.Array:
        """Updates tokens by what the parts gave elsewhere, under the gates of what is given."""
        _, _, gate_a, _, _, gate_f = self._modulations(given)
        x_NxSxD += gate_a[:, None] * known.attention
        return x_NxSxD + gate_f[:, None] * known.feed_forward

    def first_input(self, x_NxSxD: jax.Array, given: Given) -> jax.Array:
        """What the attention sees of the tokens: [N, S, D]."""
        shift_a, scale_a, *_ = self._modulations(given)
        return modulate(x_NxSxD, shift_a, scale_a)

    def would_route(self, x_NxSxD: jax.Array, given: Given) -> Routing:
        """How the mixture would route tokens [N, S, D] as they are, without this block's attention
        and under its own modulation."""
        assert isinstance(self.feed_forward, MoELayer)
        _, _, _, shift_f, scale_f, _ = self._modulations(given)
        h_NxSxD = modulate(x_NxSxD, shift_f, scale_f)
        n, s, d = h_NxSxD.shape
        return self.feed_forward.decide(h_NxSxD.reshape(n * s, d), _conditioning(given, s))

    def _modulations(self, given: Given) -> list[jax.Array]:
        """Shift, scale and gate of the attention, then of the feed-forward: each [N, D]."""
        return jnp.split(self.modulation(jax.nn.silu(given.condition)), 6, axis=-1)

    def _attended(self, h_NxSxD: jax.Array, given: Given) -> jax.Array:
        if isinstance(self.attention, JointAttention):
            return self.attention(h_NxSxD, given.angles, given.joint_scale)
        return self.attention(h_NxSxD, given.angles)

    def _fed(self, h_NxSxD: jax.Array, given: Given) -> tuple[jax.Array, Routing | None]:
        if not isinstance(self.feed_forward, MoELayer):
            return self.feed_forward(h_NxSxD), None
        n, s, d = h_NxSxD.shape
        h_TxD, routing = self.feed_forward(h_NxSxD.reshape(n * s, d), _conditioning(given, s))
        if self.guess is not None and given.train:
            if routing.hidden is None:
                raise ValueError("the router's settings tell of a guess, but it has no hidden")
            guess_TxF = self.guess(routing.hidden)
            routing = dataclasses.replace(routing, hidden=None, guess=guess_TxF)
        return h_TxD.reshape(n, s, d), routing


def _conditioning(given: Given, tokens_per_image: int) -> Conditioning:
    is_null_T = jnp.repeat(given.is_null, tokens_per_image)
    return Conditioning(is_null_T, tokens_per_image, given.train, given.previous, given.decided)
