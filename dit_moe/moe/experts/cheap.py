"""Experts that cost next to nothing (MoE++, Jin et al. 2024, section 3): a dense elementwise term.

They take part in routing like any other, but no row of theirs is ever dispatched.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.moe.assignments import ExpertRanges
from dit_moe.moe.routing import Routing
from dit_moe.nn.linear import KAIMING


class CheapExperts(nnx.Module):
    """The cheap experts of a mixture by their kinds, in the order of their indices.

    `zero` gives 0; `copy` gives x; `constant` gives a_1 x + a_2 v with (a_1, a_2) = softmax(W x)
    and a learnt vector v.
    """

    def __init__(self, ranges: ExpertRanges, width: int, rngs: nnx.Rngs):
        self.ranges = ranges
        constants = ranges.cheap.count("constant")
        if constants:
            kernel = KAIMING(rngs.params(), (constants, width, 2), jnp.float32)
            self.kernel = nnx.Param(kernel, axes=(None, "embed", None))
            vector = jax.random.normal(rngs.params(), (constants, width))
            self.vector = nnx.Param(vector, axes=(None, "embed"))

    def __call__(self, x_TxD: jax.Array, routing: Routing) -> jax.Array:
        """What they add to every token: [T, D] in the dtype of x."""
        weight_TxM = self.ranges.cheap_weights(routing)
        kinds = self.ranges.cheap
        copies = [i for i, kind in enumerate(kinds) if kind == "copy"]
        constants = [i for i, kind in enumerate(kinds) if kind == "constant"]
        x = x_TxD.astype(jnp.float32)
        of_x_T = weight_TxM[:, copies].sum(axis=-1)
        y_TxD = jnp.zeros_like(x)
        if constants:
            mix_TxCx2 = jax.nn.softmax(
                jnp.einsum("td,cdm->tcm", x, self.kernel[...], precision=jax.lax.Precision.HIGHEST)
            )
            mix_TxCx2 *= weight_TxM[:, constants, None]
            of_x_T += mix_TxCx2[..., 0].sum(axis=-1)
            y_TxD = jnp.matmul(
                mix_TxCx2[..., 1], self.vector[...], precision=jax.lax.Precision.HIGHEST
            )
        return (y_TxD + of_x_T[:, None] * x).astype(x_TxD.dtype)
