"""The record in which every router writes its decision and which is all that dispatch reads."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Conditioning:
    """What a router may know of the tokens besides their features."""

    is_null: jax.Array
    """[T] bool: the token belongs to an image whose label is the null label."""
    tokens_per_image: int = flax.struct.field(pytree_node=False)
    """Tokens come image by image, T / tokens_per_image of them."""
    train: bool = flax.struct.field(pytree_node=False, default=False)
    """A training step, not sampling: for routers that learn what to do without the others."""


@flax.struct.dataclass
class Routing:
    """Who computes what: A assignments of tokens to experts, A static.

    Under a scan over layers every field gains a leading layer axis.
    """

    token: jax.Array
    """[A] int32: the token of each assignment; valid even where a slot is unused."""
    expert: jax.Array
    """[A] int32: its expert. Experts from `scores.shape[-1]` on are not routed to by score
    (the unconditional expert); from the number of all experts on there is none, at no cost."""
    weight: jax.Array
    """[A] float32: factor of the expert's output; 0 where a slot is unused."""
    scores: jax.Array
    """[T, E] float32: the router's score of every routed expert for every token."""
    losses: dict[str, jax.Array]
    """Auxiliary losses by name, float32 scalars, already scaled by their coefficients."""
    metrics: dict[str, jax.Array] = flax.struct.field(default_factory=dict)
    """What else the log should show, by name, float32 scalars."""
    next_state: dict[str, jax.Array] = flax.struct.field(default_factory=dict)
    """What the router's parameters that are no gradient's become after this step, by their name in
    the router."""
    by_image: bool = flax.struct.field(pytree_node=False, default=True)
    """Assignments come image by image, equally many of each, so that a device's share of the
    images has the same share of the assignments."""


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
      num_experts: all of them, the unconditional one included.
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
