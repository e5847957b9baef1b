"""The record in which every router writes its decision and which is all that dispatch reads."""

import flax.struct
import jax

from dit_moe.moe.slots import Mixes


@flax.struct.dataclass
class Conditioning:
    """What a router may know of the tokens besides their features."""

    is_null: jax.Array
    """[T] bool: the token belongs to an image whose label is the null label."""
    tokens_per_image: int = flax.struct.field(pytree_node=False)
    """Tokens come image by image, T / tokens_per_image of them."""
    train: bool = flax.struct.field(pytree_node=False, default=False)
    """A training step, not sampling: for routers that learn what to do without the others."""
    previous: dict[str, jax.Array] = flax.struct.field(default_factory=dict)
    """What the router of the MoE layer before has handed on (`Routing.hand_on`), by name; zeros
    for the first layer of a segment of other shapes. Empty for most routers."""
    decided: "Routing | None" = None
    """What the router before the trunk has decided, where the layers have none of their own."""


@flax.struct.dataclass
class Routing:
    """Who computes what: A assignments of tokens to experts, A static.

    Under a scan over layers every field gains a leading layer axis.
    """

    token: jax.Array
    """[A] int32: the token of each assignment; valid even where a slot is unused."""
    expert: jax.Array
    """[A] int32: its expert; what the index means is told by `assignments.ExpertRanges`."""
    weight: jax.Array
    """[A] float32: factor of the expert's output; 0 where a slot is unused."""
    scores: jax.Array
    """[T, E] float32: the router's score of every expert that it chooses from, for every token."""
    losses: dict[str, jax.Array]
    """Auxiliary losses by name, float32 scalars, already scaled by their coefficients."""
    metrics: dict[str, jax.Array] = flax.struct.field(default_factory=dict)
    """What else the log should show, by name, float32 scalars; by a name that
    `statistics.routing_statistics` tells, of its shape and in place of that."""
    next_state: dict[str, jax.Array] = flax.struct.field(default_factory=dict)
    """What the router's parameters that are no gradient's become after this step, by their name in
    the router."""
    hand_on: dict[str, jax.Array] = flax.struct.field(default_factory=dict)
    """What the router of the next MoE layer gets to see, by name, [T, ...] float32; of the shapes
    that `RouterSettings.hands_on` tells."""
    hidden: jax.Array | None = None
    """[T, H] float32: what the block guesses from that the network should predict, in a training
    step of a router whose settings tell so (`RouterSettings.guess`). The block takes it out of the
    record."""
    guess: jax.Array | None = None
    """[T, F] float32: that guess for every token, as `Prediction.guesses` has it for images."""
    by_image: bool = flax.struct.field(pytree_node=False, default=True)
    """Assignments come image by image, equally many of each, so that a device's share of the
    images has the same share of the assignments."""
    mixes: Mixes | None = None
    """Where nobody chooses: what the experts compute, an equal number of an image's slots each, in
    the order of the experts. The layer takes it out of the record."""
    mixed: bool = flax.struct.field(pytree_node=False, default=False)
    """Experts computed mixes. The assignments then are of every token to the expert of most weight
    in its result, and serve statistics alone."""
