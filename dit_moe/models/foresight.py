"""What the router of the next layer says before it is its turn (Fate, arXiv:2502.12224)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.models.block import Given
from dit_moe.models.trunk import Previous, Trunk, Unit, fitting, run_unit
from dit_moe.moe.routing import Routing


def foresee(
    trunk: Trunk, x_NxSxD: jax.Array, given: Given, num_experts: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Runs all units, and asks each one's router while the tokens enter the unit before it.

    The modulation is that of the router's own layer, known as soon as time and class are.

    Args:
      trunk: whose units.
      x_NxSxD: [N, S, D] tokens before the first of them.
      given: what every block may know.
      num_experts: E, as many as any layer has.

    Returns:
      The tokens after the last unit; how many tokens each expert of each mixture has, [L, E] int32;
      and how many were foreseen. For the first mixture of a segment nothing is: [L, E] with zeros
      there.
    """
    previous, used, foreseen = given.previous, [], []
    for stack, segment in zip(trunk.segments, trunk.config.trunk, strict=True):
        previous = fitting(previous, segment, x_NxSxD.shape[0] * x_NxSxD.shape[1])
        graphdef, parameters = nnx.split(stack)
        last = segment.repeats - 1

        def unit(index: jax.Array, graphdef=graphdef, parameters=parameters) -> Unit:
            own = jax.tree.map(
                lambda p: jax.lax.dynamic_index_in_dim(p, index, 0, False), parameters
            )
            return nnx.merge(graphdef, own)

        def run(
            carry: tuple[jax.Array, Previous], index: jax.Array, unit=unit, last=last
        ) -> tuple[tuple[jax.Array, Previous], tuple[jax.Array, jax.Array] | None]:
            seen = dataclasses.replace(given, previous=carry[1])
            after = unit(jnp.minimum(index + 1, last)).blocks[-1]
            entering = carry[0]
            carry, routing, _ = run_unit(unit(index), carry, given)
            if routing is None:
                return carry, None
            ahead = after.would_route(entering, seen)
            return carry, (tokens_of(routing, num_experts), tokens_of(ahead, num_experts))

        (x_NxSxD, previous), found = jax.lax.scan(
            run, (x_NxSxD, previous), jnp.arange(segment.repeats)
        )
        if found is not None:
            used.append(found[0])
            foreseen.append(jnp.roll(found[1], 1, axis=0).at[0].set(0))
    return x_NxSxD, jnp.concatenate(used), jnp.concatenate(foreseen)


def tokens_of(routing: Routing, num_experts: int) -> jax.Array:
    """How many tokens each expert has: [E] int32."""
    expert_A = jnp.where(routing.weight != 0, routing.expert, num_experts)
    return jnp.zeros(num_experts, jnp.int32).at[expert_A].add(1, mode="drop")
