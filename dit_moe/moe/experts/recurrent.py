"""Recurrent experts (Hecto): gated recurrent units over an image's tokens in raster order.

Every token depends on those before it, so all of an image are computed, wherever they are routed;
a token's weight says how much of the result it takes.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.config import RECURRENT
from dit_moe.nn.linear import product

_XAVIER = jax.nn.initializers.xavier_uniform
_OF_EXPERT = _XAVIER(in_axis=1, out_axis=2, batch_axis=(0,))
_OF_DIRECTION = _XAVIER(in_axis=2, out_axis=3, batch_axis=(0, 1))


class RecurrentExperts(nnx.Module):
    """R recurrent networks of one kind, of P directions with a state of H numbers each.

    With x_s the token and h the state before it, which begins as 0 (Cho et al. 2014, in the form of
    cuDNN):

        r = sigmoid(W_r x_s + b_r + U_r h)
        z = sigmoid(W_z x_s + b_z + U_z h)
        n = tanh(W_n x_s + b_n + r (U_n h + c_n))
        h_s = (1 - z) n + z h

    and the result is V h_s + d, of the states of both directions side by side where there are two.
    """

    def __init__(self, kind: str, number: int, width: int, hidden: int, rngs: nnx.Rngs):
        r, p, d, h = number, RECURRENT[kind].directions, width, hidden
        # Each matrix is initialised apart: its fan-out is `hidden`.
        w_in = [_OF_EXPERT(rngs.params(), (r, d, h)) for _ in range(3 * p)]
        w_state = [_OF_DIRECTION(rngs.params(), (r, p, h, h)) for _ in range(3)]
        self.w_in = nnx.Param(jnp.concatenate(w_in, axis=-1), axes=(None, "embed", "mlp"))
        self.b_in = nnx.Param(jnp.zeros((r, 3 * p * h)), axes=(None, "mlp"))
        state_axes = (None, None, None, "mlp")
        self.w_state = nnx.Param(jnp.concatenate(w_state, axis=-1), axes=state_axes)
        self.b_state = nnx.Param(jnp.zeros((r, p, h)), axes=state_axes[1:])
        w_out_RxHxD = _OF_EXPERT(rngs.params(), (r, p * h, d))
        self.w_out = nnx.Param(w_out_RxHxD, axes=(None, "mlp", "embed"))
        self.b_out = nnx.Param(jnp.zeros((r, d)), axes=(None, "embed"))

    def __call__(self, x_TxD: jax.Array, weight_TxR: jax.Array, tokens_per_image: int) -> jax.Array:
        """What they add to every token.

        Args:
          x_TxD: [T, D] tokens, image by image; T a multiple of `tokens_per_image`.
          weight_TxR: [T, R] float32, each token's weight of each expert.
          tokens_per_image: S.

        Returns:
          [T, D] in the dtype of x. States and gates are float32.
        """
        (t, d), dtype = x_TxD.shape, x_TxD.dtype
        r, p, h, _ = self.w_state[...].shape
        w_in_DxG = jnp.moveaxis(self.w_in[...], 0, 1).reshape(d, -1)
        gates_TxG = product(x_TxD, w_in_DxG.astype(dtype))
        shape = (t // tokens_per_image, tokens_per_image, r, p, 3 * h)
        gates_SxN = jnp.moveaxis(gates_TxG.reshape(shape), 1, 0)
        states_SxN = _second_flipped(self._scan(_second_flipped(gates_SxN)))
        states_TxR = jnp.moveaxis(states_SxN, 0, 1).reshape(t, r, p * h)
        weighted_TxR = (weight_TxR[..., None] * states_TxR).astype(dtype)
        y_TxD = product(weighted_TxR.reshape(t, -1), self.w_out[...].reshape(-1, d).astype(dtype))
        bias_TxD = jnp.sum(weight_TxR[..., None] * self.b_out[...], axis=1)
        return y_TxD + bias_TxD.astype(dtype)

    def _scan(self, gates_SxN: jax.Array) -> jax.Array:
        """From what the tokens add to the gates, [S, N, R, P, 3 H], to states [S, N, R, P, H]."""
        r, p, h, _ = self.w_state[...].shape
        dtype = gates_SxN.dtype
        w_state, b_in = self.w_state[...].astype(dtype), self.b_in[...].reshape(r, p, 3 * h)

        def step(state: jax.Array, own: jax.Array) -> tuple[jax.Array, jax.Array]:
            past = jnp.einsum(
                "nrph,rphg->nrpg",
                state.astype(dtype),
                w_state,
                preferred_element_type=jnp.float32,
            )
            own_r, own_z, own_n = jnp.split(own.astype(jnp.float32) + b_in, 3, axis=-1)
            past_r, past_z, past_n = jnp.split(past, 3, axis=-1)
            reset, update = jax.nn.sigmoid(own_r + past_r), jax.nn.sigmoid(own_z + past_z)
            new = jnp.tanh(own_n + reset * (past_n + self.b_state[...]))
            state = (1 - update) * new + update * state
            return state, state

        first = jnp.zeros((*gates_SxN.shape[1:-1], h))
        return jax.lax.scan(step, first, gates_SxN)[1]


def _second_flipped(array: jax.Array) -> jax.Array:
    """[S, N, R, P, ...] with the order of the tokens turned round in the second direction."""
    if array.shape[3] == 1:
        return array
    there, back = jnp.split(array, 2, axis=3)
    return jnp.concatenate([there, back[::-1]], axis=3)
