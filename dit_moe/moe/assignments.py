"""Assignments of tokens to experts: what an index means, how they are made and put in order."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.config import MoEConfig
from dit_moe.moe.routing import Routing


@dataclass(frozen=True)
class ExpertRanges:
    """What `Routing.expert` means: the experts of the stack, then the cheap ones, then none.

    The stack has the routed experts first, which the router scores, and then the unconditional
    one. Indices from `none` on stand for no expert, at no cost.
    """

    routed: int
    unconditional: int
    """1 if there is an unconditional expert, whose index is `routed`; otherwise 0."""
    cheap: tuple[str, ...]
    """Kinds of the cheap experts, whose indices begin at `stack`."""
    unlike: tuple[int, ...] = ()
    """How many of the routed experts, the last of them, each group of another kind has."""

    @classmethod
    def of(cls, moe: MoEConfig) -> "ExpertRanges":
        """The ranges of a mixture."""
        unlike = tuple(group.number for group in moe.unlike)
        return cls(moe.num_experts, int(moe.unconditional_expert), moe.cheap_experts, unlike)

    @property
    def stack(self) -> int:
        """Experts with weights: dispatch sends nothing past them."""
        return self.routed + self.unconditional

    @property
    def none(self) -> int:
        """The first index without an expert."""
        return self.stack + len(self.cheap)

    @property
    def groups(self) -> tuple[np.ndarray, ...]:
        """The indices of the experts that are alike, of every group in order. The unconditional
        expert is of the first."""
        ends = np.cumsum([self.routed - sum(self.unlike), *self.unlike])
        first, *others = np.split(np.arange(self.routed), ends[:-1])
        return np.append(first, np.arange(self.routed, self.stack)), *others

    def within(self, routing: Routing, group: int) -> Routing:
        """The routing with a group's own indices, from 0; all others mean none there."""
        if not self.unlike:
            return routing
        own = self.groups[group]
        place_E = np.full(self.none + 1, len(own), np.int32)
        place_E[own] = np.arange(len(own))
        expert_A = jnp.asarray(place_E)[jnp.minimum(routing.expert, self.none)]
        return dataclasses.replace(routing, expert=expert_A)

    def stood_in(self, routing: Routing, stand_in_E: jax.Array) -> Routing:
        """The routing of a router with other columns than there are experts (`MoEConfig.columns`).

        A token may then have an expert twice, whose weights add up.

        Args:
          routing: its indices are of the router's columns where they are less than their number,
            and beyond these as all else would follow them.
          stand_in_E: [E] float32 whole numbers: for each column an expert that is there.
        """
        columns = len(stand_in_E)
        own_A = jnp.take(stand_in_E, routing.expert, mode="clip").astype(jnp.int32)
        beyond_A = routing.expert - columns + self.routed
        expert_A = jnp.where(routing.expert < columns, own_A, beyond_A)
        return dataclasses.replace(routing, expert=expert_A)

    def cheap_weights(self, routing: Routing) -> jax.Array:
        """Each token's weight of each cheap expert: float32 [T, M]."""
        return self._weights(routing, self.stack, len(self.cheap))

    def group_weights(self, routing: Routing, group: int) -> jax.Array:
        """Each token's weight of each expert of a group: float32 [T, R]."""
        own = self.groups[group]
        return self._weights(routing, int(own[0]), len(own))

    @staticmethod
    def _weights(routing: Routing, first: int, number: int) -> jax.Array:
        place_A = routing.expert - first
        # A negative place would count from the end.
        place_A = jnp.where(place_A < 0, number, place_A)
        weight_TxM = jnp.zeros((routing.scores.shape[0], number))
        return weight_TxM.at[routing.token, place_A].add(routing.weight, mode="drop")


def slots_from_mask(
    chosen_TxE: jax.Array, weight_TxE: jax.Array, none: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Token, expert and weight [T E] with a slot for every pair, in the order of the tokens.

    Args:
      chosen_TxE: [T, E] bool: which experts compute which tokens.
      weight_TxE: [T, E] float32; read where chosen.
      none: the index that stands for no expert.
    """
    t, e = chosen_TxE.shape
    expert_TxE = jnp.where(chosen_TxE, jnp.arange(e, dtype=jnp.int32), none)
    weight_TxE = jnp.where(chosen_TxE, weight_TxE, 0.0)
    token_A = jnp.repeat(jnp.arange(t, dtype=jnp.int32), e)
    return token_A, expert_TxE.reshape(-1), weight_TxE.reshape(-1)


def arrange_by_image(routing: Routing, num_experts: int) -> Routing:
    """The same assignments with a slot for every token and expert, so that `by_image` holds.

    Args:
      routing: no token has an expert twice.
      num_experts: of the stack, the unconditional one included.
    """
    if routing.by_image:
        return routing
    shape = (routing.scores.shape[0], num_experts)
    pair = (routing.token, routing.expert)
    chosen_TxE = jnp.zeros(shape, bool).at[pair].set(True, mode="drop")
    weight_TxE = jnp.zeros(shape, jnp.float32).at[pair].set(routing.weight, mode="drop")
    token_A, expert_A, weight_A = slots_from_mask(chosen_TxE, weight_TxE, num_experts)
    return dataclasses.replace(
        routing, token=token_A, expert=expert_A, weight=weight_A, by_image=True
    )


def sort_by_expert(expert_A: jax.Array, num_experts: int) -> tuple[jax.Array, jax.Array]:
    """Orders assignments by expert, stably.

    Args:
        expert_A: [A] int32. Values from `num_experts` on mean "no expert" and are sorted last.
        num_experts: E.

    Returns:
        order [A] int32, the assignment at each sorted place, and size [E] int32, the number of
        assignments of each expert.
    """
    num = expert_A.shape[0]
    expert_A = jnp.minimum(expert_A.astype(jnp.int32), num_experts)
    size_E = jnp.bincount(expert_A, length=num_experts).astype(jnp.int32)
    if (num_experts + 1) * num < 2**31:
        # Sorting one packed key is several times faster than argsort, which moves two arrays.
        packed_A = expert_A * num + jnp.arange(num, dtype=jnp.int32)
        return jnp.sort(packed_A) % num, size_E
    return jnp.argsort(expert_A, stable=True).astype(jnp.int32), size_E
