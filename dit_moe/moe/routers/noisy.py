"""Noisy top-k (Shazeer et al. 2017, GShard): learnt noise on the logits of training."""

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.config import MoEConfig, NoisyTopKRouterConfig
from dit_moe.moe import losses
from dit_moe.moe.routers.choice import TokenChoice
from dit_moe.moe.routers.draws import counter, key_of
from dit_moe.moe.routers.scores import GATES, init_top_k_kernel, linear_scores, z_term
from dit_moe.moe.routing import Conditioning, Routing


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
        super().__init__(config, settings, rngs)
        self.settings = settings
        self.kernel = init_top_k_kernel(config.scored_experts, width, rngs)
        noise_DxE = jnp.zeros((width, config.scored_experts))
        self.noise_kernel = nnx.Param(noise_DxE, axes=("embed", None))
        if self.draw is None:
            self.draw = counter(rngs)

    def __call__(self, x_TxD: jax.Array, conditioning: Conditioning) -> Routing:
        x_TxD = x_TxD.astype(jnp.float32)
        logits_TxE = linear_scores(x_TxD, self.kernel[...])
        if conditioning.train:
            assert self.draw is not None
            noise_TxE = jax.random.normal(key_of(self.draw[...], purpose=0), logits_TxE.shape)
            scale_TxE = jax.nn.softplus(linear_scores(x_TxD, self.noise_kernel[...]))
            logits_TxE += noise_TxE * scale_TxE
        scores_TxE = jax.nn.softmax(logits_TxE)
        best_TxK, expert_TxK = self.choose(scores_TxE, conditioning)
        chosen_TxK = jnp.take_along_axis(logits_TxE, best_TxK, axis=-1)
        balance = self.settings.balance_coef * losses.balance_loss(scores_TxE, expert_TxK)
        return self.record(
            expert_TxK,
            GATES[self.settings.gate](chosen_TxK),
            scores_TxE,
            {"balance": balance, **z_term(self.settings.z_coef, logits_TxE)},
            train=conditioning.train,
        )
