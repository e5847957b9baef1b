"""What routers share whose experts choose from the batch in training, and by thresholds after."""

import jax

from dit_moe.moe.assignments import slots_from_mask
from dit_moe.moe.routing import Routing


def followed(threshold: jax.Array, lowest: jax.Array, decay: float) -> jax.Array:
    """The moving average of what training serves last, without a gradient; of any shape."""
    return jax.lax.stop_gradient(decay * threshold + (1 - decay) * lowest)


def sampled(
    chosen_TxE: jax.Array,
    scores_TxE: jax.Array,
    losses: dict[str, jax.Array],
    metrics: dict[str, jax.Array],
) -> Routing:
    """The record of any number of experts for each token, with their scores as weights."""
    slots = slots_from_mask(chosen_TxE, scores_TxE, scores_TxE.shape[1])
    return Routing(*slots, scores=scores_TxE, losses=losses, metrics=metrics)


def served(passes_TxE: jax.Array) -> dict[str, jax.Array]:
    """How many experts a token would get if sampling began now, for the log."""
    return {"predicted_capacity": passes_TxE.sum(axis=-1, dtype="float32").mean()}
