"""Experts with a capacity: who is kept where more tokens want an expert than it may compute."""

import jax
import jax.numpy as jnp


def within_capacity(
    expert_TxK: jax.Array, num_experts: int, capacity: int, key: jax.Array
) -> jax.Array:
    """Which assignments an expert keeps: a token's first choice before another's second, and of
    equal ones by lot (Z-code M3, Kim et al. 2021, section 3.1: random token selection).

    Args:
      expert_TxK: [T, K] int32, each token's choices in their order. Indices from `num_experts` on
        have no capacity, and are kept.
      num_experts: E.
      capacity: C, the most that an expert keeps.
      key: of the lots, one for each token.

    Returns:
      [T, K] bool.
    """
    num_tokens, top_k = expert_TxK.shape
    expert_A = expert_TxK.reshape(-1)
    lot_A = jnp.repeat(jax.random.uniform(key, (num_tokens,)), top_k)
    place_A = jnp.tile(jnp.arange(top_k), num_tokens)
    order_A = jnp.lexsort((lot_A, place_A, expert_A))
    sorted_A = expert_A[order_A]
    rank_A = jnp.arange(len(sorted_A)) - jnp.searchsorted(sorted_A, sorted_A)
    kept_A = (rank_A < capacity) | (sorted_A >= num_experts)
    return jnp.zeros(len(kept_A), bool).at[order_A].set(kept_A).reshape(num_tokens, top_k)
