"""What the routers do, as numbers for the log."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.config import MoEConfig
from dit_moe.moe.assignments import ExpertRanges
from dit_moe.moe.exchange import expert_shards, expert_slices
from dit_moe.moe.losses import assignment_counts
from dit_moe.moe.routing import Routing

ByLayer = dict[int, jax.Array]
"""Arrays with a leading axis of MoE layers that follow each other, by the number of the first."""


def layer_statistics(
    routings: Sequence[Routing], mixtures: Sequence[MoEConfig]
) -> dict[str, ByLayer]:
    """Statistics of all MoE layers by name: what `routing_statistics` and `expert_traffic` tell.

    Args:
      routings: a record for each segment that has mixtures, with a leading layer axis.
      mixtures: of these segments.
    """
    found: dict[str, ByLayer] = {}
    first = 0
    for routing, moe in zip(routings, mixtures, strict=True):
        ranges = ExpertRanges.of(moe)
        kinds = zip(ranges.groups, moe.groups, strict=True)
        spread = [own for own, group in kinds if not group.facts.whole_images]
        of_segment = routing_statistics(routing, ranges) | expert_traffic(routing, spread)
        for name, value in of_segment.items():
            found.setdefault(name, {})[first] = value
        first += len(routing.weight)
    return found


def routing_statistics(routing: Routing, ranges: ExpertRanges) -> dict[str, jax.Array]:
    """Per-layer statistics of a stacked record.

    Args:
      routing: the record with a leading layer axis.
      ranges: what its indices mean.

    Returns:
      `load` [L, E]: share of the used assignments that went to each expert, the cheap ones last.
      `busiest` [L]: the largest of these shares.
      `entropy` [L]: mean entropy of a token's scores (clipped at 0, normalised to sum 1) over
      log E: 1 when undecided, 0 when certain.
      `capacity` [L]: used assignments per token, those to cheap experts left out.
      The router's own metrics [L], by name, which replace these.
    """

    def layer(routing: Routing) -> dict[str, jax.Array]:
        used_A = jnp.where(routing.weight != 0, routing.expert, ranges.none)
        count_E = assignment_counts(used_A, ranges.none)
        load_E = count_E / jnp.maximum(count_E.sum(), 1)
        p_TxE = jnp.maximum(routing.scores, 1e-20)
        p_TxE /= p_TxE.sum(axis=-1, keepdims=True)
        entropy_T = -jnp.sum(p_TxE * jnp.log(p_TxE), axis=-1)
        # A single expert has no entropy to normalise.
        entropy = entropy_T.mean() / jnp.log(max(p_TxE.shape[-1], 2))
        return {
            "load": load_E,
            "busiest": load_E.max(),
            "entropy": entropy,
            "capacity": count_E[: ranges.stack].sum() / p_TxE.shape[0],
            **routing.metrics,
        }

    return jax.vmap(layer)(routing)


def expert_traffic(routing: Routing, spread: Sequence[np.ndarray]) -> dict[str, jax.Array]:
    """Per-layer statistics of what expert parallelism sends over the current mesh.

    Args:
      routing: the record of all tokens with a leading layer axis.
      spread: the indices of the experts that are spread over devices, of every stack of them;
        the others compute where their tokens are.

    Returns:
      `sent` [L]: share of the assignments whose expert is on another device than their token.
      `received_largest` [L]: the largest share of all assignments that the devices of one place
      along the axis "expert" receive; 1 over the size of the axis when the load is even. Slots
      without one of these experts do not count.
      Nothing where the mesh does not split the experts.
    """
    shards = expert_shards()
    if shards == 1:
        return {}
    if routing.mixed:  # every image has as many slots for each expert
        even = jnp.ones(len(routing.weight))
        return {"sent": (1 - 1 / shards) * even, "received_largest": even / shards}
    mesh = jax.sharding.get_abstract_mesh()
    device_tokens = routing.scores.shape[-2] // mesh.size

    # The last entry is of all indices past the others.
    owner_E = np.full(max(own.max() for own in spread) + 2, shards, np.int32)
    for own in spread:
        owner_E[own] = np.arange(len(own)) // -(-len(own) // shards)

    def layer(routing: Routing) -> dict[str, jax.Array]:
        # Tokens are split over all devices, whose last axes are "expert" and "tensor".
        home_A = routing.token // device_tokens // expert_slices() % shards
        owner_A = jnp.asarray(owner_E)[jnp.minimum(routing.expert, len(owner_E) - 1)]
        routed_A = owner_A < shards
        count_S = assignment_counts(owner_A, shards)
        total = jnp.maximum(count_S.sum(), 1)
        sent = jnp.sum(routed_A & (owner_A != home_A), dtype=jnp.float32)
        return {"sent": sent / total, "received_largest": count_S.max() / total}

    return jax.vmap(layer)(routing)
