"""Mixes of tokens in place of tokens: what experts compute where nobody chooses (SoftMoE)."""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Mixes:
    """The tokens of N images, S each, into P slots each and back."""

    into: jax.Array
    """[N, S, P] float32: the share that each token has in a slot; 1 over an image's tokens."""
    back: jax.Array
    """[N, S, P] float32: the share that each slot has in a token's result; 1 over the slots."""

    def fill(self, x_TxD: jax.Array) -> jax.Array:
        """From tokens [N S, D], image by image, to slots [N P, D], in the dtype of x."""
        return _mix("nsp,nsd->npd", self.into, x_TxD)

    def spread(self, y_RxD: jax.Array) -> jax.Array:
        """From slots [N P, D] to tokens [N S, D], in the dtype of y."""
        return _mix("nsp,npd->nsd", self.back, y_RxD)


def _mix(axes: str, share_NxSxP: jax.Array, rows: jax.Array) -> jax.Array:
    """Products in the dtype of the rows, summed in float32."""
    rows_NxRxD = rows.reshape(len(share_NxSxP), -1, rows.shape[-1])
    wide = jnp.promote_types(rows.dtype, jnp.float32)
    mixed = jnp.einsum(
        axes, share_NxSxP.astype(rows.dtype), rows_NxRxD, preferred_element_type=wide
    )
    return mixed.astype(rows.dtype).reshape(-1, rows.shape[-1])
