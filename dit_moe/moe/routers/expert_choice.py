"""Routers in which every expert chooses tokens of each image (EC-DiT, ProMoE's second form)."""

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.config import (
    ExpertChoiceRouterConfig,
    MoEConfig,
    PrototypeExpertChoiceRouterConfig,
)
from dit_moe.moe import losses
from dit_moe.moe.routers.scores import (
    GATES,
    expert_capacity,
    gated_scores,
    init_kernel,
    init_prototypes,
)
from dit_moe.moe.routing import Conditioning, Routing


class ExpertChoiceRouter(nnx.Module):
    """A gate of a linear map; each expert takes its top tokens of every image (EC-DiT, whose gate
    is softmax over experts).

    The weights are the gate's values. The load is even by construction, and an image depends on
    no other.
    """

    def __init__(
        self, config: MoEConfig, settings: ExpertChoiceRouterConfig, width: int, rngs: nnx.Rngs
    ):
        self.settings = settings
        self.top_k = config.top_k
        self.kernel = init_kernel(config.num_experts, width, rngs)

    def __call__(self, x_TxD: jax.Array, conditioning: Conditioning) -> Routing:
        x_TxD = x_TxD.astype(jnp.float32)
        scores_TxE, z = gated_scores(x_TxD, self.kernel[...], self.settings)
        scores_NxExS = _by_image(scores_TxE, conditioning.tokens_per_image)
        weight_NxExC, place_NxExC = _choose(scores_NxExS, self.top_k)
        num_images, num_experts, capacity = place_NxExC.shape
        expert_ExC = jnp.repeat(jnp.arange(num_experts, dtype=jnp.int32), capacity)
        return Routing(
            token=_tokens(place_NxExC.reshape(num_images, -1), conditioning.tokens_per_image),
            expert=jnp.tile(expert_ExC, num_images),
            weight=weight_NxExC.reshape(-1),
            scores=scores_TxE,
            losses=z,
        )


class PrototypeExpertChoiceRouter(nnx.Module):
    """Each prototype takes the tokens of every image that are nearest to it (ProMoE).

    The weights are the activated cosines. With an unconditional expert (index num_experts), all
    tokens of images with the null label go there with weight 1, and to no other.

    An image has as many slots as its larger kind of assignments needs: the prototypes' E C or the
    unconditional expert's S.
    """

    def __init__(
        self,
        config: MoEConfig,
        settings: PrototypeExpertChoiceRouterConfig,
        width: int,
        rngs: nnx.Rngs,
    ):
        self.total_experts = config.total_experts
        self.top_k = config.top_k
        self.unconditional_expert = config.unconditional_expert
        self.settings = settings
        self.prototypes = init_prototypes(config.num_experts, width, rngs)

    def __call__(self, x_TxD: jax.Array, conditioning: Conditioning) -> Routing:
        x_TxD, s = x_TxD.astype(jnp.float32), conditioning.tokens_per_image
        similarity_TxE = losses.cosine_similarity(x_TxD, self.prototypes[...])
        scores_NxExS = GATES[self.settings.activation](_by_image(similarity_TxE, s))
        weight_NxExC, place_NxExC = _choose(scores_NxExS, self.top_k)
        num_images, num_experts, capacity = place_NxExC.shape
        place_NxA = place_NxExC.reshape(num_images, -1)
        weight_NxA = weight_NxExC.reshape(num_images, -1)
        expert_A = jnp.repeat(jnp.arange(num_experts, dtype=jnp.int32), capacity)
        expert_NxA = jnp.broadcast_to(expert_A, place_NxA.shape)
        is_null_N = conditioning.is_null[::s]
        if self.unconditional_expert:
            slots, none = max(num_experts * capacity, s), self.total_experts

            def select(null: jax.Array, chosen_NxA: jax.Array, unused: float) -> jax.Array:
                """The slots of images without a label, and of the others."""
                null_A = jnp.pad(null, (0, slots - s), constant_values=unused)
                pad = ((0, 0), (0, slots - chosen_NxA.shape[1]))
                chosen_NxA = jnp.pad(chosen_NxA, pad, constant_values=unused)
                return jnp.where(is_null_N[:, None], null_A, chosen_NxA)

            place_NxA = select(jnp.arange(s, dtype=jnp.int32), place_NxA, 0)
            expert_NxA = select(jnp.full(s, num_experts, jnp.int32), expert_NxA, none)
            weight_NxA = select(jnp.ones(s), weight_NxA, 0)
            conditional_N = ~is_null_N
        else:
            conditional_N = jnp.ones_like(is_null_N)
        contrastive = self.settings.contrastive_coef * losses.image_contrastive_loss(
            x_TxD.reshape(num_images, s, -1),
            self.prototypes[...],
            place_NxExC,
            conditional_N,
            self.settings.contrastive_temperature,
        )
        return Routing(
            token=_tokens(place_NxA, s),
            expert=expert_NxA.reshape(-1),
            weight=weight_NxA.reshape(-1),
            scores=scores_NxExS.swapaxes(1, 2).reshape(-1, num_experts),
            losses={"routing_contrastive": contrastive},
            metrics={"prototype_similarity": losses.mean_similarity(self.prototypes[...])},
        )


def _by_image(scores_TxE: jax.Array, tokens_per_image: int) -> jax.Array:
    """[N, E, S]: the scores of an image's tokens by expert."""
    return scores_TxE.reshape(-1, tokens_per_image, scores_TxE.shape[-1]).swapaxes(1, 2)


def _choose(scores_NxExS: jax.Array, top_k: int) -> tuple[jax.Array, jax.Array]:
    """The C highest scores of each expert in each image, and their places in it: [N, E, C]."""
    _, num_experts, tokens = scores_NxExS.shape
    return jax.lax.top_k(scores_NxExS, expert_capacity(tokens, num_experts, top_k))


def _tokens(place_NxA: jax.Array, tokens_per_image: int) -> jax.Array:
    """From places in an image to indices in the batch, image by image: int32 [N A]."""
    first_N = tokens_per_image * jnp.arange(len(place_NxA), dtype=jnp.int32)
    return (first_N[:, None] + place_NxA).reshape(-1)
