"""What a back end asks of the weights of a layer's experts, wherever and however they are kept."""

from typing import Protocol

import jax
import jax.numpy as jnp

from dit_moe.config.experts import ExpertKind
from dit_moe.nn.feed_forward import ExpertWeights


class ExpertBank(Protocol):
    """The experts of one layer: a pytree, so that it passes through jit and scan.

    `ExpertWeights` is the plain one. Another may dequantise, look up or load what it gives; a
    back end holds one expert at a time (`expert`) or all of them (`stack`).
    """

    @property
    def kind(self) -> ExpertKind:
        """The kind of all its experts."""
        ...

    @property
    def num_experts(self) -> int:
        """E."""
        ...

    def expert(self, index: jax.Array | int, dtype: jnp.dtype) -> ExpertWeights:
        """The weights of one expert in a dtype: [D, G], [F, D], and its biases."""
        ...

    def stack(self, dtype: jnp.dtype) -> ExpertWeights:
        """The weights of all experts, their matrices in a dtype: [E, D, G], [E, F, D]."""
        ...
