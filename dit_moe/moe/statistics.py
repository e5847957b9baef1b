"""What the routers do, as numbers for the log."""

import jax
import jax.numpy as jnp

from dit_moe.moe.expert_parallel import expert_shards
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


def expert_traffic(routing: Routing, num_experts: int) -> dict[str, jax.Array]:
    """Per-layer statistics of what expert parallelism sends over the current mesh.

    Args:
      routing: the record of all tokens with a leading layer axis, token-choice in token order.
      num_experts: all experts, the unconditional one included.

    Returns:
      `sent` [L]: share of the assignments whose expert is on another device than their token.
      `received_largest` [L]: the largest share of all assignments that the devices of one place
      along the axis "expert" receive; 1 over the size of the axis when the load is even.
      Nothing where the mesh does not split the experts.
    """
    shards = expert_shards()
    if shards == 1:
        return {}
    mesh = jax.sharding.get_abstract_mesh()
    num_assignments = routing.expert.shape[-1]
    # Tokens are split over all devices, whose last axis is "expert".
    device_A = jnp.arange(num_assignments) // (num_assignments // mesh.size)
    owner_LxA = routing.expert // -(-num_experts // shards)

    def layer(owner_A: jax.Array) -> dict[str, jax.Array]:
        count_S = assignment_counts(owner_A, shards)
        return {
            "sent": jnp.mean(owner_A != device_A % shards, dtype=jnp.float32),
            "received_largest": count_S.max() / num_assignments,
        }

    return jax.vmap(layer)(owner_LxA)


def prototype_similarity(prototypes_LxExD: jax.Array) -> jax.Array:
    """Mean cosine between different prototypes of each layer: float32 [L]; needs E > 1."""

    def layer(prototypes_ExD: jax.Array) -> jax.Array:
        e = prototypes_ExD.shape[0]
        similarity_ExE = cosine_similarity(prototypes_ExD, prototypes_ExD)
        return (similarity_ExE.sum() - jnp.trace(similarity_ExE)) / (e * (e - 1))

    return jax.vmap(layer)(prototypes_LxExD)
