"""What routers in which every token chooses its experts share: the choice and its record."""

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.config import MoEConfig
from dit_moe.moe.routing import Routing


class TokenChoice(nnx.Module):
    """A router that scores all experts, of which every token takes its top_k."""

    def __init__(self, config: MoEConfig):
        self.config = config

    def choose(self, scores_TxE: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The top_k experts of every token by score, whose scores are its weights, and those that
        it goes to: the same, or by `MoEConfig.choice` those with the lowest scores."""
        _, best_TxK = jax.lax.top_k(scores_TxE, self.config.top_k)
        if self.config.choice == "least_likely":
            return best_TxK, jax.lax.top_k(-scores_TxE, self.config.top_k)[1]
        return best_TxK, best_TxK


def token_choice(
    expert_TxK: jax.Array,
    weight_TxK: jax.Array,
    scores_TxE: jax.Array,
    auxiliary: dict[str, jax.Array],
) -> Routing:
    """The record in which every token has K assignments, in token order."""
    num_tokens, top_k = expert_TxK.shape
    return Routing(
        token=jnp.repeat(jnp.arange(num_tokens, dtype=jnp.int32), top_k),
        expert=expert_TxK.reshape(-1),
        weight=weight_TxK.reshape(-1),
        scores=scores_TxE,
        losses=auxiliary,
    )
