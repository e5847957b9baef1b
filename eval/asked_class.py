"""Losses that steer samples of an embedded data set to the class that was asked for.

python sample.py --workdir runs/digits --steer_loss eval.asked_class:digits --output out/
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from .features.embedded import EMBEDDED


def digits(x_NxHxWxC: jax.Array, y_N: jax.Array) -> jax.Array:
    """-log p(y | x) [N] by the classifier of `eval`, trained on the digits when first called.

    Args:
        x_NxHxWxC: 8x8 in [-1, 1].
        y_N: which digits they should be.
    """
    h_NxD = ((x_NxHxWxC + 1) / 2).mean(axis=-1).reshape(len(x_NxHxWxC), -1)
    *hidden, (weight, bias) = _layers("digits")
    for inner_weight, inner_bias in hidden:
        h_NxD = jax.nn.relu(h_NxD @ inner_weight + inner_bias)
    log_NxK = jax.nn.log_softmax(h_NxD @ weight + bias)
    return -jnp.take_along_axis(log_NxK, y_N[:, None], axis=1)[:, 0]


@functools.cache
def _layers(name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Matrices and biases, float32."""
    network = EMBEDDED[name].fit()
    pairs = zip(network.coefs_, network.intercepts_, strict=True)
    return [(weight.astype(np.float32), bias.astype(np.float32)) for weight, bias in pairs]
