"""What an objective is: a loss for training, made from a network it knows nothing else of."""

from collections.abc import Callable, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp

from dit_moe.models.prediction import Prediction

Network = Callable[[jax.Array, jax.Array, jax.Array], Prediction]
"""From x [N, H, W, C], t [N] float32 in the network's own unit, and labels [N]."""

Metrics = dict[str, jax.Array]

TIME_BINS = 4


class Objective(Protocol):
    """A way to train a network to denoise."""

    def loss(
        self, network: Network, key_N: jax.Array, x_NxHxWxC: jax.Array, y_N: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, Prediction]]:
        """The training loss of a batch.

        Args:
          network: predicts from noisy x, time and label.
          key_N: [N] random keys; an image's time and noise depend on its own key alone.
          x_NxHxWxC: [N, H, W, C] float32 clean images or latents.
          y_N: [N] int32 labels.

        Returns:
          The float32 loss with the network's auxiliary losses added, and beside it the metrics
          (see `total_loss`) and the prediction.
        """
        ...


def total_loss(
    terms: Mapping[str, jax.Array], time_N: jax.Array, prediction: Prediction
) -> tuple[jax.Array, tuple[Metrics, Prediction]]:
    """Adds up the loss and names its parts.

    Args:
      terms: the objective's own losses by name, each [N].
      time_N: [N] where in its range each image's time lies, in [0, 1).
      prediction: of the network, with auxiliary losses.

    Returns:
      What `Objective.loss` returns. Metrics: "loss" (the sum of all), every term and auxiliary
      loss by name, and the objective's loss in equal bins of time, "loss_t0" to "loss_t3", NaN
      where the batch has no image in the bin.
    """
    diffusion_N = jnp.sum(jnp.stack(list(terms.values())), axis=0)
    loss = diffusion_N.mean() + sum(prediction.losses.values(), jnp.float32(0))
    metrics = {"loss": loss, **{name: term.mean() for name, term in terms.items()}}
    metrics |= prediction.losses
    bin_N = jnp.floor(time_N * TIME_BINS).astype(jnp.int32)
    for b in range(TIME_BINS):
        inside_N = bin_N == b
        metrics[f"loss_t{b}"] = jnp.where(inside_N, diffusion_N, 0).sum() / inside_N.sum()
    return loss, (metrics, prediction)


def per_image(coefficient_N: jax.Array) -> jax.Array:
    """[N] shaped to multiply [N, H, W, C]."""
    return coefficient_N[:, None, None, None]


def mean_per_image(x_NxHxWxC: jax.Array) -> jax.Array:
    """Mean over all but the first axis: [N]."""
    return x_NxHxWxC.mean(axis=(1, 2, 3))
