"""Feed-forward networks: one for every token, or a stack of experts for dispatch."""

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.moe.backends.blocked import ExpertWeights, expert_activation

_XAVIER = jax.nn.initializers.xavier_uniform(in_axis=-2, out_axis=-1, batch_axis=(0,))


class Experts(nnx.Module):
    """The parameters of E feed-forward networks.

    `swiglu`: down(silu(gate(x)) * up(x)) without biases; gate and up share one matrix, gate first.
    `gelu`: down(gelu_tanh(up(x))) with biases. `silu`: the same with silu; for `FeedForward` alone.
    """

    def __init__(self, kind: str, num_experts: int, width: int, hidden: int, rngs: nnx.Rngs):
        self.kind = kind
        # Gate and up are initialised apart: the fan-out of each is `hidden`.
        parts = {"swiglu": 2, "gelu": 1, "silu": 1}[kind]
        w_in_ExDxG = jnp.concatenate(
            [_XAVIER(rngs.params(), (num_experts, width, hidden)) for _ in range(parts)], axis=-1
        )
        w_out_ExFxD = _XAVIER(rngs.params(), (num_experts, hidden, width))
        self.w_in = nnx.Param(w_in_ExDxG, axes=("expert", "embed", "mlp"))
        self.w_out = nnx.Param(w_out_ExFxD, axes=("expert", "mlp", "embed"))
        if kind != "swiglu":
            self.b_in = nnx.Param(jnp.zeros((num_experts, hidden)), axes=("expert", "mlp"))
            self.b_out = nnx.Param(jnp.zeros((num_experts, width)), axes=("expert", "embed"))

    def weights(self) -> ExpertWeights:
        """The float32 parameters in the form that dispatch takes."""
        biased = self.kind != "swiglu"
        return ExpertWeights(
            w_in=self.w_in[...],
            w_out=self.w_out[...],
            b_in=self.b_in[...] if biased else None,
            b_out=self.b_out[...] if biased else None,
            activation=self.kind,
        )


class FeedForward(nnx.Module):
    """One feed-forward network that every token passes: a dense block's, or a shared expert."""

    def __init__(self, kind: str, width: int, hidden: int, rngs: nnx.Rngs):
        self.experts = Experts(kind, 1, width, hidden, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., D] to [..., D] in the dtype of x."""
        w = self.experts.weights()
        h = x @ w.w_in[0].astype(x.dtype)
        if w.b_in is not None:
            h = h + w.b_in[0].astype(x.dtype)
        y = expert_activation(h, w.activation) @ w.w_out[0].astype(x.dtype)
        if w.b_out is not None:
            y = y + w.b_out[0].astype(x.dtype)
        return y
