"""SoftMoE's router (Puigcerver et al. 2023): shares of all tokens in all slots."""

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.config import MoEConfig, SoftRouterConfig
from dit_moe.moe import losses
from dit_moe.moe.routing import Conditioning, Routing
from dit_moe.moe.slots import Mixes


class SoftRouter(nnx.Module):
    """Cosines of tokens and slots times a learnt scale; their softmax over an image's tokens is
    what goes into a slot, over all slots what a token gets back.

    An image depends on no other, and the load is even by construction.
    """

    def __init__(self, config: MoEConfig, settings: SoftRouterConfig, width: int, rngs: nnx.Rngs):
        self.num_experts, self.slots = config.num_experts, settings.all_slots(config)
        init = jax.nn.initializers.lecun_normal(in_axis=1, out_axis=0)
        slots_PxD = init(rngs.params(), (self.slots, width), jnp.float32)
        self.vectors = nnx.Param(slots_PxD, axes=(None, "embed"))
        self.scale = nnx.Param(jnp.ones(1), axes=(None,))

    def __call__(self, x_TxD: jax.Array, conditioning: Conditioning) -> Routing:
        num_tokens, s = len(x_TxD), conditioning.tokens_per_image
        cosine_TxP = losses.cosine_similarity(x_TxD.astype(jnp.float32), self.vectors[...])
        logits_NxSxP = (self.scale[...] * cosine_TxP).reshape(-1, s, self.slots)
        into_NxSxP = jax.nn.softmax(logits_NxSxP, axis=1)
        back_NxSxP = jax.nn.softmax(logits_NxSxP, axis=2)
        scores_TxE = back_NxSxP.reshape(num_tokens, self.num_experts, -1).sum(axis=-1)
        load_E = scores_TxE.mean(axis=0)
        return Routing(
            token=jnp.arange(num_tokens, dtype=jnp.int32),
            expert=scores_TxE.argmax(axis=-1).astype(jnp.int32),
            weight=scores_TxE.max(axis=-1),
            scores=scores_TxE,
            losses={},
            metrics={
                "load": load_E,
                "busiest": load_E.max(),
                "capacity": jnp.float32(self.slots / s),
                "slot_entropy": _entropy(into_NxSxP),
            },
            mixes=Mixes(into_NxSxP, back_NxSxP),
            mixed=True,
        )


def _entropy(into_NxSxP: jax.Array) -> jax.Array:
    """Mean entropy of the tokens in a slot over log S: 1 where a slot has the mean token, 0 where
    it has a single one."""
    p = jnp.maximum(into_NxSxP, 1e-20)
    entropy_NxP = -jnp.sum(p * jnp.log(p), axis=1)
    return entropy_NxP.mean() / jnp.log(max(p.shape[1], 2))
