"""Balance without a gradient: what a step makes of the biases by which tokens choose."""

import jax
import jax.numpy as jnp

from dit_moe.config import BiasSettings, MoEConfig
from dit_moe.moe import losses


def next_bias(
    bias_E: jax.Array, expert_TxK: jax.Array, settings: BiasSettings, moe: MoEConfig
) -> jax.Array:
    """Moves the biases to where the load comes near what it should be.

    Args:
      bias_E: [E] float32, the cheap experts' last.
      expert_TxK: [T, K] int32; indices from E on (the unconditional expert) do not count.
      settings: `bias` is `sign` or `share`.
      moe: whose E experts they are.

    Returns:
      float32 [E], without a gradient.
    """
    load_E = losses.assignment_counts(expert_TxK, len(bias_E))
    if settings.bias == "sign":
        lack_E = jnp.sign(load_E.mean() - load_E)
    else:
        due = settings.computed(moe) / moe.top_k / moe.num_experts
        lack_E = due - load_E / jnp.maximum(load_E.sum(), 1)
        lack_E = jnp.where(jnp.arange(len(bias_E)) < moe.num_experts, lack_E, 0.0)
    return jax.lax.stop_gradient(bias_E + settings.bias_rate * lack_E)
