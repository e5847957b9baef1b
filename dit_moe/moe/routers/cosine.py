"""X-MoE's router: cosines between a projected token and a vector of each expert."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.config import CosineRouterConfig, MoEConfig
from dit_moe.moe import losses
from dit_moe.moe.routers.choice import GatedTokenChoice
from dit_moe.moe.routers.scores import linear_scores
from dit_moe.nn.linear import linear


class CosineRouter(GatedTokenChoice):
    """A gate of scaled cosines in a space of low rank; each token goes to its top_k experts.

    Neither the length
    of a token nor that of an expert's vector matters. The scale is learnt as its logarithm.
    """

    def __init__(self, config: MoEConfig, settings: CosineRouterConfig, width: int, rngs: nnx.Rngs):
        super().__init__(config, settings, rngs)
        self.largest_scale = settings.largest_scale
        self.projection = linear(width, settings.rank, ("embed", None), rngs)
        init = jax.nn.initializers.normal(0.01)
        vectors_ExR = init(rngs.params(), (config.scored_experts, settings.rank), jnp.float32)
        self.vectors = nnx.Param(vectors_ExR, axes=(None, None))
        self.log_scale = nnx.Param(jnp.full(1, math.log(settings.initial_scale)), axes=(None,))

    def logits(self, x_TxD: jax.Array) -> jax.Array:
        """The scaled cosines."""
        bias = self.projection.bias
        assert bias is not None
        x_TxR = linear_scores(x_TxD, self.projection.kernel[...]) + bias[...]
        scale = jnp.exp(jnp.minimum(self.log_scale[...], math.log(self.largest_scale)))
        return scale * losses.cosine_similarity(x_TxR, self.vectors[...])
