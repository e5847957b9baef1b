"""Pairs of which one image is given while the other learns, as either is drawn of the other.

With times drawn for each image, one without any noise is next to never seen.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.diffusion.objective import Network
from dit_moe.models.prediction import Prediction


def learning_rows(rows: int, share: float) -> np.ndarray:
    """Which images of a batch of pairs learn: their places, ascending.

    Args:
      rows: images; those of a pair lie one after another.
      share: of the pairs, at even distance, whose first image or second one, in turn, is given.
    """
    before_P = np.floor(np.arange(rows // 2 + 1) * share)
    given_P, second_P = np.diff(before_P) > 0, before_P[:-1] % 2 == 1
    given_Px2 = np.stack([given_P & ~second_P, given_P & second_P], axis=1)
    return np.flatnonzero(~given_Px2.reshape(-1))


def beside_given(
    network: Network, x_NxHxWxC: jax.Array, y_N: jax.Array, learning: np.ndarray
) -> Network:
    """A network of the images that learn, which are asked beside those that are given: these have
    time 0 and no noise.

    Args:
      network: of all images of the pairs.
      x_NxHxWxC: these images.
      y_N: their labels.
      learning: as of `learning_rows`.
    """

    def predict(z: jax.Array, t_L: jax.Array, y_L: jax.Array) -> Prediction:
        all_z, all_y = x_NxHxWxC.at[learning].set(z), y_N.at[learning].set(y_L)
        all_t = jnp.zeros(len(all_y), t_L.dtype).at[learning].set(t_L)
        found = network(all_z, all_t, all_y)
        guesses = found.guesses
        if guesses is not None:
            guesses = dataclasses.replace(guesses, value=guesses.value[:, learning])
        return dataclasses.replace(found, value=found.value[learning], guesses=guesses)

    return predict
