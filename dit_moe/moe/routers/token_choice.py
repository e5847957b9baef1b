"""Routers in which every token chooses its experts (DiT-MoE, DSMoE, ProMoE)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.config import (
    MoEConfig,
    PrototypeRouterConfig,
    SigmoidTopKRouterConfig,
    TopKRouterConfig,
)
from dit_moe.moe import losses
from dit_moe.moe.routers.choice import GatedTokenChoice, TokenChoice
from dit_moe.moe.routers.scores import (
    GATES,
    init_prototypes,
    init_top_k_kernel,
    linear_scores,
    z_term,
)
from dit_moe.moe.routing import Conditioning, Routing


class TopKRouter(GatedTokenChoice):
    """A gate of a linear map; each token goes to its top_k experts.

    With softmax it is DiT-MoE's (eq. 3 to 5), with sigmoid that of BASE and StableMoE.
    """

    def __init__(self, config: MoEConfig, settings: TopKRouterConfig, width: int, rngs: nnx.Rngs):
        super().__init__(config, settings, rngs)
        self.kernel = init_top_k_kernel(config.scored_experts, width, rngs)

    def logits(self, x_TxD: jax.Array) -> jax.Array:
        """The linear map."""
        return linear_scores(x_TxD, self.kernel[...])


class SigmoidTopKRouter(TokenChoice):
    """Sigmoid of a linear map; a bias per expert evens the load (DSMoE, after DeepSeek-V3).

    Each token goes to the top_k experts of score plus bias. The weights are their scores without
    the bias, which sum to `scale` where there are two or more (one expert has `scale` times its
    score).
    """

    def __init__(
        self, config: MoEConfig, settings: SigmoidTopKRouterConfig, width: int, rngs: nnx.Rngs
    ):
        super().__init__(config, settings, rngs)
        self.settings = settings
        init = jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal")  # Kaiming normal
        kernel_DxE = init(rngs.params(), (width, config.scored_experts), jnp.float32)
        self.kernel = nnx.Param(kernel_DxE, axes=("embed", None))

    def __call__(self, x_TxD: jax.Array, conditioning: Conditioning) -> Routing:
        logits_TxE = linear_scores(x_TxD.astype(jnp.float32), self.kernel[...])
        scores_TxE = jax.nn.sigmoid(logits_TxE)
        best_TxK, expert_TxK = self.choose(scores_TxE, conditioning)
        weight_TxK = jnp.take_along_axis(scores_TxE, best_TxK, axis=-1)
        if self.config.top_k > 1:
            weight_TxK /= weight_TxK.sum(axis=-1, keepdims=True) + 1e-20
        auxiliary = z_term(self.settings.z_coef, logits_TxE)
        weight_TxK *= self.settings.scale
        return self.record(expert_TxK, weight_TxK, scores_TxE, auxiliary, train=conditioning.train)


class PrototypeRouter(TokenChoice):
    """ProMoE's two-step router (section 4).

    Step 1, conditional routing: tokens of images with the null label go to the unconditional
    expert (index num_experts) with weight 1, if there is one. Step 2, prototypical routing: the
    others go to the top_k prototypes by activated cosine similarity, which is also their weight.
    """

    def __init__(
        self, config: MoEConfig, settings: PrototypeRouterConfig, width: int, rngs: nnx.Rngs
    ):
        super().__init__(config, settings, rngs)
        self.settings = settings
        self.prototypes = init_prototypes(config.num_experts, width, rngs)

    def __call__(self, x_TxD: jax.Array, conditioning: Conditioning) -> Routing:
        x_TxD = x_TxD.astype(jnp.float32)
        similarity_TxE = losses.cosine_similarity(x_TxD, self.prototypes[...])
        scores_TxE = GATES[self.settings.activation](similarity_TxE)
        best_TxK, expert_TxK = self.choose(scores_TxE, conditioning)
        weight_TxK = jnp.take_along_axis(scores_TxE, best_TxK, axis=-1)
        if self.config.unconditional_expert:
            num_experts = self.config.num_experts
            is_null_Tx1 = conditioning.is_null[:, None]
            # One expert computes the token once; the other slots point past all experts.
            first_K = jnp.arange(self.config.top_k) == 0
            unconditional_K = jnp.where(first_K, num_experts, num_experts + 1)
            expert_TxK = jnp.where(is_null_Tx1, unconditional_K, expert_TxK)
            weight_TxK = jnp.where(is_null_Tx1, first_K.astype(jnp.float32), weight_TxK)
        contrastive = self.settings.contrastive_coef * losses.routing_contrastive_loss(
            x_TxD, self.prototypes[...], expert_TxK, self.settings.contrastive_temperature
        )
        routing = self.record(
            expert_TxK,
            weight_TxK,
            scores_TxE,
            {"routing_contrastive": contrastive},
            train=conditioning.train,
        )
        similarity = losses.mean_similarity(self.prototypes[...])
        return dataclasses.replace(
            routing, metrics={**routing.metrics, "prototype_similarity": similarity}
        )
