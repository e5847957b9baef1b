"""Guidance: a network made of one or more passes of another."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from dit_moe.diffusion.objective import Network
from dit_moe.nn.prediction import Prediction


def classifier_free(
    network: Network,
    scale: float,
    null_label: int,
    channels: Literal["all", "first_three"] = "all",
) -> Network:
    """uncond + scale (cond - uncond), both in one pass of twice the batch.

    Ho & Salimans 2022, eq. 6, whose w is scale - 1.

    With scale 1 it is the network itself, without a second pass. A learned variance (channels
    beyond those of x) is that of the conditional pass.

    Args:
      network: the network to guide.
      scale: 0 is unconditional, 1 conditional, more is stronger guidance.
      null_label: the label that stands for no class.
      channels: guide all channels of x, or, as DiT's published samples, the first three.
    """
    if scale == 1:
        return network

    def guided(x_NxHxWxC: jax.Array, t_N: jax.Array, y_N: jax.Array) -> Prediction:
        y_2N = jnp.concatenate([y_N, jnp.full_like(y_N, null_label)])
        prediction = network(
            jnp.concatenate([x_NxHxWxC, x_NxHxWxC]), jnp.concatenate([t_N, t_N]), y_2N
        )
        conditional, unconditional = jnp.split(prediction.value, 2)
        g = x_NxHxWxC.shape[-1] if channels == "all" else 3
        mixed = unconditional + scale * (conditional - unconditional)
        value = jnp.concatenate([mixed[..., :g], conditional[..., g:]], axis=-1)
        return dataclasses.replace(prediction, value=value)

    return guided
