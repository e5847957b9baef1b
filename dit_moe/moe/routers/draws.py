"""What routers draw at random in training: by a counter that they keep beside the gradient."""

import jax
import jax.numpy as jnp
from flax import nnx

_DRAWS = 2**24
"""Up to here, float32 holds every integer."""


def counter(rngs: nnx.Rngs) -> nnx.Param:
    """A fresh counter [1] float32; each layer begins elsewhere. Updated through
    `Routing.next_state`; its gradient is 0."""
    first = jax.random.randint(rngs.params(), (1,), 0, _DRAWS)
    return nnx.Param(first.astype(jnp.float32), axes=(None,))


def key_of(draw: jax.Array, purpose: int) -> jax.Array:
    """The random key of a counter's state [1], one for each purpose."""
    return jax.random.fold_in(jax.random.key(purpose), draw[0].astype(jnp.uint32))


def advanced(draw: jax.Array) -> jax.Array:
    """The counter after a step."""
    return jax.lax.stop_gradient((draw + 1) % _DRAWS)
