"""Expert Race (Yuan et al. 2025): the pairs of tokens and experts of a batch race for its slots."""

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.config import ExpertRaceRouterConfig, MoEConfig
from dit_moe.moe import losses
from dit_moe.moe.routers.scores import GATES, init_kernel, linear_scores, z_term
from dit_moe.moe.routers.thresholds import followed, sampled, served
from dit_moe.moe.routing import Conditioning, Routing
from dit_moe.nn.linear import linear


class ExpertRaceRouter(nnx.Module):
    """A gate of a linear map of a hidden layer, GELU(W x), whose values are the weights.

    In training the T top_k highest values of the batch win, whatever the devices: a token may have
    any number of experts, and an expert any number of tokens. A threshold follows the lowest of
    them. When sampling, what reaches it wins, so that an image depends on nothing else.

    The hidden layer is handed to the block, whose head guesses the network's output from it.
    """

    def __init__(
        self, config: MoEConfig, settings: ExpertRaceRouterConfig, width: int, rngs: nnx.Rngs
    ):
        self.settings, self.top_k = settings, config.top_k
        self.dense_in = linear(width, width, ("embed", "mlp"), rngs)
        self.kernel = init_kernel(config.num_experts, width, rngs)
        # Updated through `Routing.next_state`; its gradient is 0.
        self.threshold = nnx.Param(jnp.zeros(1), axes=(None,))

    def __call__(self, x_TxD: jax.Array, conditioning: Conditioning) -> Routing:
        settings = self.settings
        hidden_TxD = jax.nn.gelu(self.dense_in(x_TxD.astype(jnp.float32)), approximate=True)
        logits_TxE = linear_scores(hidden_TxD, self.kernel[...])
        scores_TxE = GATES[settings.gate](logits_TxE)
        z = z_term(settings.z_coef, logits_TxE)
        passes_TxE = jax.lax.stop_gradient(scores_TxE) >= self.threshold[...]
        if not conditioning.train:
            return sampled(passes_TxE, scores_TxE, z, served(passes_TxE))

        num_tokens, num_experts = scores_TxE.shape
        weight_A, pair_A = jax.lax.top_k(scores_TxE.reshape(-1), num_tokens * self.top_k)
        token_A, expert_A = jnp.divmod(pair_A.astype(jnp.int32), num_experts)
        chosen_TxE = jnp.zeros(scores_TxE.shape).at[token_A, expert_A].set(1.0)
        similarity = losses.router_similarity_loss(jax.nn.softmax(logits_TxE), chosen_TxE)
        threshold = followed(self.threshold[...], weight_A[-1:], settings.threshold_decay)
        return Routing(
            token=token_A,
            expert=expert_A,
            weight=weight_A,
            scores=scores_TxE,
            losses={"similarity": settings.similarity_coef * similarity, **z},
            metrics={**served(passes_TxE), "pair_usage": _pair_usage(chosen_TxE)},
            next_state={"threshold": threshold},
            hidden=hidden_TxD,
            by_image=False,
        )


def _pair_usage(chosen_TxE: jax.Array) -> jax.Array:
    """The share of the pairs of experts in which 95% of the tokens' pairs lie, the most frequent
    first: 0.95 where all are alike, near 0 where tokens have few combinations; 0 without any."""
    num_experts = chosen_TxE.shape[1]
    shared_ExE = jnp.matmul(chosen_TxE.T, chosen_TxE)
    pairs_P = jnp.sort(shared_ExE[jnp.triu_indices(num_experts, k=1)], descending=True)
    before_P = jnp.cumsum(pairs_P) - pairs_P
    needed_P = (before_P < 0.95 * pairs_P.sum()) & (pairs_P > 0)
    return needed_P.sum(dtype=jnp.float32) / max(len(pairs_P), 1)
