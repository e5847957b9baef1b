"""Who a router chooses for: every token by itself, or all tokens of an image as one (Hecto)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.config import MoEConfig
from dit_moe.moe.routing import Conditioning, Routing

Route = Callable[[jax.Array, Conditioning], Routing]


def route(moe: MoEConfig, router: Route, x_TxD: jax.Array, conditioning: Conditioning) -> Routing:
    """The router's decision for tokens [T, D], or for whole images, as `moe.choose_by` says."""
    if moe.choose_by == "image" and conditioning.decided is None:
        return image_wise(router, x_TxD, conditioning)
    return router(x_TxD, conditioning)


class Decided(nnx.Module):
    """Stands for the router in a layer that has none of its own: what was decided before."""

    def __call__(self, x_TxD: jax.Array, conditioning: Conditioning) -> Routing:
        """The record that is given; of the tokens it sees nothing."""
        del x_TxD
        if conditioning.decided is None:
            raise ValueError("a layer without a router is given no decision")
        return conditioning.decided


def image_wise(router: Route, x_TxD: jax.Array, conditioning: Conditioning) -> Routing:
    """What a router decides for the mean token of every image, for all of its tokens.

    Args:
      router: one in which tokens choose, with as many assignments of each, in their order.
      x_TxD: [T, D] tokens, image by image, of any float type.
      conditioning: of the tokens.

    Returns:
      The record of all T tokens. Its losses and metrics are over images.
    """
    s = conditioning.tokens_per_image
    mean_NxD = x_TxD.astype(jnp.float32).reshape(-1, s, x_TxD.shape[-1]).mean(axis=1)
    first_of_each = {name: value[::s] for name, value in conditioning.previous.items()}
    routing = router(
        mean_NxD,
        dataclasses.replace(
            conditioning,
            is_null=conditioning.is_null[::s],
            tokens_per_image=1,
            previous=first_of_each,
        ),
    )
    n = len(mean_NxD)

    def for_all(of_images: jax.Array) -> jax.Array:
        """[N K] to [N S K]."""
        return jnp.repeat(of_images.reshape(n, 1, -1), s, axis=1).reshape(-1)

    return dataclasses.replace(
        routing,
        token=jnp.repeat(jnp.arange(n * s, dtype=jnp.int32), len(routing.token) // n),
        expert=for_all(routing.expert),
        weight=for_all(routing.weight),
        scores=jnp.repeat(routing.scores, s, axis=0),
        hand_on={name: jnp.repeat(value, s, axis=0) for name, value in routing.hand_on.items()},
    )
