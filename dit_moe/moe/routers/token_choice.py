"""Routers in which every token chooses its experts (DiT-MoE, ProMoE)."""

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.config import MoEConfig, PrototypeRouterConfig, TopKRouterConfig
from dit_moe.moe import losses
from dit_moe.moe.routers.scores import ACTIVATIONS, init_prototypes, softmax_scores
from dit_moe.moe.routing import Conditioning, Routing


class TopKRouter(nnx.Module):
    """Softmax over a linear map; each token goes to its top_k experts (DiT-MoE, eq. 3 to 5).

    The weights are the softmax values of the chosen experts, not renormalised.
    """

    def __init__(self, config: MoEConfig, settings: TopKRouterConfig, width: int, rngs: nnx.Rngs):
        self.top_k = config.top_k
        self.balance_coef = settings.balance_coef
        # Kaiming uniform with a = sqrt(5): the bound is sqrt(6 / ((1 + a^2) fan_in)).
        init = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        kernel_DxE = init(rngs.params(), (width, config.num_experts), jnp.float32)
        self.kernel = nnx.Param(kernel_DxE, axes=("embed", None))

    def __call__(self, x_TxD: jax.Array, conditioning: Conditioning) -> Routing:
        del conditioning
        scores_TxE = softmax_scores(x_TxD.astype(jnp.float32), self.kernel[...])
        weight_TxK, expert_TxK = jax.lax.top_k(scores_TxE, self.top_k)
        balance = self.balance_coef * losses.balance_loss(scores_TxE, expert_TxK)
        return _token_choice(expert_TxK, weight_TxK, scores_TxE, {"balance": balance})


class PrototypeRouter(nnx.Module):
    """ProMoE's two-step router (section 4).

    Step 1, conditional routing: tokens of images with the null label go to the unconditional
    expert (index num_experts) with weight 1, if there is one. Step 2, prototypical routing: the
    others go to the top_k prototypes by activated cosine similarity, which is also their weight.
    """

    def __init__(
        self, config: MoEConfig, settings: PrototypeRouterConfig, width: int, rngs: nnx.Rngs
    ):
        self.num_experts = config.num_experts
        self.top_k = config.top_k
        self.unconditional_expert = config.unconditional_expert
        self.settings = settings
        self.prototypes = init_prototypes(config.num_experts, width, rngs)

    def __call__(self, x_TxD: jax.Array, conditioning: Conditioning) -> Routing:
        x_TxD = x_TxD.astype(jnp.float32)
        similarity_TxE = losses.cosine_similarity(x_TxD, self.prototypes[...])
        scores_TxE = ACTIVATIONS[self.settings.activation](similarity_TxE)
        weight_TxK, expert_TxK = jax.lax.top_k(scores_TxE, self.top_k)
        if self.unconditional_expert:
            is_null_Tx1 = conditioning.is_null[:, None]
            # One expert computes the token once: its weight is 1 in the first slot, 0 in the rest.
            first_K = jnp.arange(self.top_k) == 0
            expert_TxK = jnp.where(is_null_Tx1, self.num_experts, expert_TxK)
            weight_TxK = jnp.where(is_null_Tx1, first_K.astype(jnp.float32), weight_TxK)
        contrastive = self.settings.contrastive_coef * losses.routing_contrastive_loss(
            x_TxD, self.prototypes[...], expert_TxK, self.settings.contrastive_temperature
        )
        return _token_choice(
            expert_TxK, weight_TxK, scores_TxE, {"routing_contrastive": contrastive}
        )


def _token_choice(
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
