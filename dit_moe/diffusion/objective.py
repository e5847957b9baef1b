"""What an objective is: a loss for training, the noise in it, and a network's way to solvers."""

from collections.abc import Callable, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.config import ObjectiveConfig
from dit_moe.diffusion.denoiser import Denoiser
from dit_moe.models.prediction import Prediction

Network = Callable[[jax.Array, jax.Array, jax.Array], Prediction]
"""From x [N, ..., C], t [N] float32 in the network's own unit, and labels [N]."""

Metrics = dict[str, jax.Array]

TIME_BINS = 4


class Objective(Protocol):
    """A way to train a network to denoise, for examples of any rank (see `denoiser`)."""

    @property
    def config(self) -> ObjectiveConfig:
        """What it was built from."""
        ...

    def loss(
        self, network: Network, key_N: jax.Array, x: jax.Array, y_N: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, Prediction]]:
        """The training loss of a batch.

        Args:
          network: predicts from noisy x, time and label.
          key_N: [N] random keys; an example's time and noise depend on its own key alone.
          x: [N, ..., C] float32 clean data.
          y_N: [N] int32 labels.

        Returns:
          The float32 loss with the network's auxiliary losses added, and beside it the metrics
          (see `total_loss`) and the prediction.
        """
        ...

    def noised(
        self, x: jax.Array, place_N: jax.Array, noise: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Noisy data at places in the range of training times, as training shows them.

        Args:
          x: [N, ..., C] float32 clean data.
          place_N: [N] float32 in (0, 1): 0 is the time next to the data, 1 that of most noise.
          noise: standard normal, as x.

        Returns:
          What the network is asked: noisy x, and times [N] float32 in its own unit.
        """
        ...

    def target(self, x: jax.Array, noise: jax.Array) -> jax.Array:
        """What the network should predict of data and the noise in them, [N, ..., C]; beside it,
        a learnt variance has no target."""
        ...

    def denoiser(self, network: Network) -> Denoiser:
        """The network as solvers and guidance see it."""
        ...

    @property
    def time_range(self) -> tuple[float, float]:
        """The least and the greatest flow time that the network was trained for."""
        ...

    def times(self, steps: int) -> np.ndarray:
        """Flow times of the objective's own grid: [steps + 1] float32, descending to 0."""
        ...

    def quadratic_times(self, steps: int) -> np.ndarray:
        """The same with shorter steps near the data, as a square."""
        ...

    def places(self, steps: int) -> np.ndarray:
        """Where in the range of training times, in (0, 1], each but the last of `times` lies."""
        ...


def total_loss(
    terms: Mapping[str, jax.Array], time_N: jax.Array, prediction: Prediction, target: jax.Array
) -> tuple[jax.Array, tuple[Metrics, Prediction]]:
    """Adds up the loss and names its parts.

    Args:
      terms: the objective's own losses by name, each [N].
      time_N: [N] where in its range each example's time lies, in [0, 1).
      prediction: of the network, with auxiliary losses.
      target: [N, ..., C] what the network should have predicted, as its layers should have guessed.

    Returns:
      What `Objective.loss` returns. Metrics: "loss" (the sum of all), every term and auxiliary
      loss by name, and the objective's loss in equal bins of time, "loss_t0" to "loss_t3", NaN
      where the batch has no example in the bin.
    """
    diffusion_N = jnp.sum(jnp.stack(list(terms.values())), axis=0)
    auxiliary = prediction.losses | _loss_of_guesses(prediction, target)
    loss = diffusion_N.mean() + sum(auxiliary.values(), jnp.float32(0))
    metrics = {"loss": loss, **{name: term.mean() for name, term in terms.items()}}
    metrics |= auxiliary
    bin_N = jnp.floor(time_N * TIME_BINS).astype(jnp.int32)
    for b in range(TIME_BINS):
        inside_N = bin_N == b
        metrics[f"loss_t{b}"] = jnp.where(inside_N, diffusion_N, 0).sum() / inside_N.sum()
    return loss, (metrics, prediction)


def _loss_of_guesses(prediction: Prediction, target: jax.Array) -> dict[str, jax.Array]:
    """The mean squared error of what each layer guesses by itself, scaled, summed over layers."""
    guesses = prediction.guesses
    if guesses is None:
        return {}
    square_L = jnp.square(guesses.value - target).mean(axis=tuple(range(1, target.ndim + 1)))
    return {"layer_guess": jnp.sum(jnp.asarray(guesses.coefs) * square_L)}
