"""The linear layer of this network: Xavier uniform, zero bias, logical axis names."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

_XAVIER = jax.nn.initializers.xavier_uniform()

Axes = tuple[str | None, str | None]


def linear(
    in_features: int,
    out_features: int,
    axes: Axes,
    rngs: nnx.Rngs,
    *,
    dtype: jnp.dtype | None = None,
    init: Callable = _XAVIER,
) -> nnx.Linear:
    """A linear layer with bias.

    Args:
      in_features: width of the input.
      out_features: width of the output.
      axes: logical names of the kernel's two axes, for `training/mesh.py`.
      rngs: source of the kernel.
      dtype: of the computation; None for that of input and float32 parameters promoted.
      init: initialiser of the kernel.
    """
    return nnx.Linear(
        in_features,
        out_features,
        dtype=dtype,
        kernel_init=init,
        kernel_metadata={"axes": axes},
        bias_metadata={"axes": axes[1:]},
        rngs=rngs,
    )
