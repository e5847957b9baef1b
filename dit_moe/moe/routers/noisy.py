"""Noisy top-k (Shazeer et al. 2017, GShard): learnt noise on the logits of training."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.config import MoEConfig, NoisyTopKRouterConfig
from dit_moe.moe import losses
from dit_moe.moe.routers.choice import TokenChoice
from dit_moe.moe.routers.scores import GATES, init_top_k_kernel, linear_scores, z_term
from dit_moe.moe.routing import Conditioning, Routing

_DRAWS = 2**24
"""Up to here, float32 holds every integer."""


class NoisyTopKRouter(TokenChoice):
    """Logits x W + e softplus(x W_noise) with e standard normal; the gate of the top_k of them.

    Noise belongs to training: sampling has the logits as they are. e is drawn for each token's
    place in the batch and each expert by the router's own counter, which a step advances: neither
    the number of devices nor a restart changes it. The parts of accumulation share a step's draw.

    The noise's matrix starts at zero, where its scale is log(2).
    """

    def __init__(
        self, config: MoEConfig, settings: NoisyTopKRouterConfig, width: int, rngs: nnx.Rngs
    ):
        super().__init__(config, settings)
        self.settings = settings
        self.kernel = init_top_k_kernel(config.scored_experts, width, rngs)
        noise_DxE = jnp.zeros((width, config.scored_experts))
        self.noise_kernel = nnx.Param(noise_DxE, axes=("embed", None))
        # Each layer begins elsewhere. Updated through `Routing.next_state`; its gradient is 0.
        first = jax.random.randint(rngs.params(), (1,), 0, _DRAWS)
        self.draw = nnx.Param(first.astype(jnp.float32), axes=(None,))

    def __call__(self, x_TxD: jax.Array, conditioning: Conditioning) -> Routing:
        x_TxD = x_TxD.astype(jnp.float32)
        logits_TxE = linear_scores(x_TxD, self.kernel[...])
        if conditioning.train:
            key = jax.random.fold_in(jax.random.key(0), self.draw[0].astype(jnp.uint32))
            noise_TxE = jax.random.normal(key, logits_TxE.shape)
            scale_TxE = jax.nn.softplus(linear_scores(x_TxD, self.noise_kernel[...]))
            logits_TxE += noise_TxE * scale_TxE
        scores_TxE = jax.nn.softmax(logits_TxE)
        best_TxK, expert_TxK = self.choose(scores_TxE, conditioning)
        chosen_TxK = jnp.take_along_axis(logits_TxE, best_TxK, axis=-1)
        balance = self.settings.balance_coef * losses.balance_loss(scores_TxE, expert_TxK)
        routing = self.record(
            expert_TxK,
            GATES[self.settings.gate](chosen_TxK),
            scores_TxE,
            {"balance": balance, **z_term(self.settings.z_coef, logits_TxE)},
            train=conditioning.train,
        )
        if not conditioning.train:
            return routing
        draw = jax.lax.stop_gradient((self.draw[...] + 1) % _DRAWS)
        return dataclasses.replace(routing, next_state={**routing.next_state, "draw": draw})
