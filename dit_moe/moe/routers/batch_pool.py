"""DiffMoE's router: experts choose from the whole batch, and a predictor learns their choice."""

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.config import BatchPoolRouterConfig, MoEConfig
from dit_moe.moe.routers.scores import expert_capacity, gated_scores, init_kernel
from dit_moe.moe.routers.thresholds import followed, sampled, served
from dit_moe.moe.routing import Conditioning, Routing
from dit_moe.nn.linear import linear


class CapacityPredictor(nnx.Module):
    """From a token to the logit, per expert, that the expert chooses it."""

    def __init__(self, width: int, num_experts: int, rngs: nnx.Rngs):
        self.dense_in = linear(width, width, ("embed", "mlp"), rngs)
        self.dense_out = linear(width, num_experts, ("embed", None), rngs)

    def __call__(self, x_TxD: jax.Array) -> jax.Array:
        """Maps [T, D] to [T, E], float32."""
        return self.dense_out(jax.nn.silu(self.dense_in(x_TxD)))


class BatchPoolRouter(nnx.Module):
    """A gate of a linear map, whose values are the weights (DiffMoE, whose gate is softmax).

    In training each expert takes its top tokens of all images, whatever the devices, so that an
    image may get more or less computation than another. A predictor of that choice is trained
    beside it, and each expert's threshold follows the prediction at the place in its order where
    training stops.

    When sampling, prediction and threshold decide (`settings.inference`): a token's experts may be
    any number of them, none included.
    """

    def __init__(
        self, config: MoEConfig, settings: BatchPoolRouterConfig, width: int, rngs: nnx.Rngs
    ):
        self.settings = settings
        self.num_experts = config.num_experts
        self.top_k = config.top_k
        self.kernel = init_kernel(config.num_experts, width, rngs)
        self.predictor = CapacityPredictor(width, config.num_experts, rngs)
        # Updated through `Routing.next_state`; its gradient is 0.
        self.threshold = nnx.Param(jnp.zeros(config.num_experts), axes=(None,))

    def __call__(self, x_TxD: jax.Array, conditioning: Conditioning) -> Routing:
        x_TxD = x_TxD.astype(jnp.float32)
        scores_TxE, z = gated_scores(x_TxD, self.kernel[...], self.settings)
        logits_TxE = self.predictor(jax.lax.stop_gradient(x_TxD))
        prediction_TxE = jax.lax.stop_gradient(jax.nn.sigmoid(logits_TxE))
        passes_TxE = prediction_TxE > self.threshold[...]
        metrics = served(passes_TxE)
        if not conditioning.train:
            chosen_TxE = passes_TxE
            if self.settings.inference == "batch":
                # As many as pass, but those with the highest scores.
                rank_TxE = jnp.argsort(jnp.argsort(-scores_TxE, axis=0), axis=0)
                chosen_TxE = rank_TxE < passes_TxE.sum(axis=0)
            return sampled(chosen_TxE, scores_TxE, z, metrics)

        capacity = expert_capacity(len(x_TxD), self.num_experts, self.top_k)
        expert_Ex1 = jnp.arange(self.num_experts, dtype=jnp.int32)[:, None]
        weight_ExC, token_ExC = jax.lax.top_k(scores_TxE.T, capacity)
        chosen_TxE = jnp.zeros(scores_TxE.shape).at[token_ExC, expert_Ex1].set(1.0)
        entropy_TxE = jax.nn.softplus(logits_TxE) - chosen_TxE * logits_TxE
        last_E = jax.lax.top_k(prediction_TxE.T, capacity)[0][:, -1]
        decay = self.settings.threshold_decay
        threshold_E = followed(self.threshold[...], last_E, decay)
        return Routing(
            token=token_ExC.reshape(-1),
            expert=jnp.broadcast_to(expert_Ex1, token_ExC.shape).reshape(-1),
            weight=weight_ExC.reshape(-1),
            scores=scores_TxE,
            losses={"capacity": self.settings.capacity_coef * entropy_TxE.mean(), **z},
            metrics=metrics,
            next_state={"threshold": threshold_E},
            by_image=False,
        )
