"""The record in which every router writes its decision and which is all that dispatch reads."""

import flax.struct
import jax


@flax.struct.dataclass
class Conditioning:
    """What a router may know of a token besides its features."""

    is_null: jax.Array
    """[T] bool: the token belongs to an image whose label is the null label."""


@flax.struct.dataclass
class Routing:
    """Who computes what: A assignments of tokens to experts, A static.

    Under a scan over layers every field gains a leading layer axis.
    """

    token: jax.Array
    """[A] int32: the token of each assignment."""
    expert: jax.Array
    """[A] int32: its expert. Experts from `scores.shape[-1]` on are not routed to by score
    (the unconditional expert)."""
    weight: jax.Array
    """[A] float32: factor of the expert's output; 0 where a slot is unused."""
    scores: jax.Array
    """[T, E] float32: the router's score of every routed expert for every token."""
    losses: dict[str, jax.Array]
    """Auxiliary losses by name, float32 scalars, already scaled by their coefficients."""
