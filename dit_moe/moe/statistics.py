"""What the routers do, as numbers for the log."""

import jax
import jax.numpy as jnp

from dit_moe.moe.losses import assignment_counts, cosine_similarity
from dit_moe.moe.routing import Routing


def routing_statistics(routing: Routing, num_experts: int) -> dict[str, jax.Array]:
    """Per-layer statistics of a stacked record.

    Args:
      routing: the record with a leading layer axis.
      num_experts: all experts, the unconditional one included.

    Returns:
      `load` [L, num_experts]: share of the used assignments that went to each expert.
      `busiest` [L]: the largest of these shares.
      `entropy` [L]: mean entropy of a token's scores (clipped at 0, normalised to sum 1) over
      log E: 1 when undecided, 0 when certain.
    """

    def layer(routing: Routing) -> dict[str, jax.Array]:
        used_A = jnp.where(routing.weight != 0, routing.expert, num_experts)
        count_E = assignment_counts(used_A, num_experts)
        load_E = count_E / jnp.maximum(count_E.sum(), 1)
        p_TxE = jnp.maximum(routing.scores, 1e-20)
        p_TxE /= p_TxE.sum(axis=-1, keepdims=True)
        entropy_T = -jnp.sum(p_TxE * jnp.log(p_TxE), axis=-1)
        # A single expert has no entropy to normalise.
        entropy = entropy_T.mean() / jnp.log(max(p_TxE.shape[-1], 2))
        return {"load": load_E, "busiest": load_E.max(), "entropy": entropy}

    return jax.vmap(layer)(routing)


def prototype_similarity(prototypes_LxExD: jax.Array) -> jax.Array:
    """Mean cosine between different prototypes of each layer: float32 [L]; needs E > 1."""

    def layer(prototypes_ExD: jax.Array) -> jax.Array:
        e = prototypes_ExD.shape[0]
        similarity_ExE = cosine_similarity(prototypes_ExD, prototypes_ExD)
        return (similarity_ExE.sum() - jnp.trace(similarity_ExE)) / (e * (e - 1))

    return jax.vmap(layer)(prototypes_LxExD)
