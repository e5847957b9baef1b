"""What the network of texts learns: the data in noise, and tokens that can be told apart."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dit_moe.text.network import SpiralText, TextPrediction
from dit_moe.text.noise import adapted, bin_of, remembered
from dit_moe.training.step import Metrics, image_keys


class Measured(NamedTuple):
    """What is beside the loss."""

    metrics: Metrics
    """Scalars by name."""
    prediction: TextPrediction
    error: jax.Array
    """[B, S] float32: the mean errors by part of the times and place, with this batch's."""


def text_loss(
    network: SpiralText,
    key: jax.Array,
    source_NxS: jax.Array,
    target_NxS: jax.Array,
    *,
    train: bool = False,
) -> tuple[jax.Array, Measured]:
    """The loss of a batch: the mean squared error of the embeddings that the network predicts, the
    cross-entropy of rounding these to the target's tokens, and the auxiliary losses.

    Places after a text's end count as any other: so the network learns lengths.

    Args:
      network: see `SpiralText`.
      key: of the batch; times and noise of a text follow from its place in it.
      source_NxS: int32 [N, S].
      target_NxS: int32 [N, S'].
      train: a training step; some routers choose otherwise then.
    """
    diffusion = network.diffusion
    coin_key, key = jax.random.split(key)
    time_key_N, noise_key_N = jax.vmap(jax.random.split, out_axes=1)(
        image_keys(key, len(target_NxS))
    )
    t_N = jax.vmap(lambda k: jax.random.randint(k, (), 1, diffusion.times + 1))(time_key_N)
    clean = network.embeddings()[target_NxS]
    noise = jax.vmap(lambda k: jax.random.normal(k, clean.shape[1:]))(noise_key_N)
    abar_NxS = jax.lax.stop_gradient(network.abar[...]).T[t_N]
    x = jnp.sqrt(abar_NxS)[..., None] * clean + jnp.sqrt(1 - abar_NxS)[..., None] * noise
    read = network.read(source_NxS, train=train)

    def first_estimate() -> jax.Array:
        value = network(read, x, t_N, jnp.zeros_like(x), train=train).value
        return jax.lax.stop_gradient(value)

    coin = jax.random.bernoulli(coin_key, diffusion.self_condition)
    estimate = jax.lax.cond(coin, first_estimate, lambda: jnp.zeros_like(x))
    prediction = network(read, x, t_N, estimate, train=train)
    error_NxS = jnp.square(prediction.value - clean).mean(axis=-1)
    logits = network.logits(prediction.value)
    rounding = -jnp.take_along_axis(
        jax.nn.log_softmax(logits), target_NxS[..., None], axis=-1
    ).mean()
    auxiliary = prediction.losses
    mse = error_NxS.mean()
    loss = mse + diffusion.rounding * rounding + sum(auxiliary.values(), jnp.float32(0))
    right_NxS = jnp.argmax(logits, axis=-1) == target_NxS
    metrics = {
        "loss": loss,
        "mse": mse,
        "rounding": rounding,
        "right_tokens": right_NxS.mean(),
        **auxiliary,
    }
    bin_N = bin_of(t_N, diffusion.times, diffusion.adapt_bins)
    error_BxS = remembered(network.error[...], bin_N, error_NxS)
    return loss, Measured(metrics, prediction, jax.lax.stop_gradient(error_BxS))


def next_noise(
    network: SpiralText, error_BxS: jax.Array, number: jax.Array
) -> dict[str, jax.Array]:
    """What the parameters `abar` and `error` become after step `number`, int32 scalar."""
    every, abar_SxT = network.diffusion.adapt_every, network.abar[...]
    if every == 0:
        return {"abar": abar_SxT, "error": network.error[...]}
    due = number % every == 0
    changed = jax.lax.cond(due, lambda: adapted(abar_SxT, error_BxS), lambda: abar_SxT)
    return {"abar": changed, "error": error_BxS}
