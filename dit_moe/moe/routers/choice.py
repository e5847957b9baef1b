"""What routers in which every token chooses its experts share: the choice and its record."""

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.config import BiasSettings, CosineRouterConfig, MoEConfig, TopKRouterConfig
from dit_moe.moe import losses
from dit_moe.moe.routers.load_bias import next_bias
from dit_moe.moe.routers.scores import GATES, z_term
from dit_moe.moe.routing import Conditioning, Routing


class TokenChoice(nnx.Module):
    """A router that scores all experts, of which every token takes its top_k: those of score plus
    bias, where the settings have biases."""

    def __init__(self, config: MoEConfig, balance: BiasSettings):
        self.config, self.balance = config, balance
        # Updated through `Routing.next_state`; its gradient is 0.
        biases = balance.biases(config)
        self.bias = nnx.Param(jnp.zeros(biases), axes=(None,)) if biases else None

    def choose(self, scores_TxE: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The top_k experts of every token by score and bias, whose scores are its weights, and
        those that it goes to: the same, or by `MoEConfig.choice` the last of all."""
        if self.bias is not None:
            scores_TxE += self.bias[...]
        _, best_TxK = jax.lax.top_k(scores_TxE, self.config.top_k)
        if self.config.choice == "least_likely":
            return best_TxK, jax.lax.top_k(-scores_TxE, self.config.top_k)[1]
        return best_TxK, best_TxK

    def record(
        self,
        expert_TxK: jax.Array,
        weight_TxK: jax.Array,
        scores_TxE: jax.Array,
        auxiliary: dict[str, jax.Array],
        *,
        train: bool,
    ) -> Routing:
        """Every token has K assignments, in token order; a training step moves the biases."""
        num_tokens, top_k = expert_TxK.shape
        state = {}
        if train and self.bias is not None:
            state["bias"] = next_bias(self.bias[...], expert_TxK, self.balance, self.config)
        return Routing(
            token=jnp.repeat(jnp.arange(num_tokens, dtype=jnp.int32), top_k),
            expert=expert_TxK.reshape(-1),
            weight=weight_TxK.reshape(-1),
            scores=scores_TxE,
            losses=auxiliary,
            next_state=state,
        )


class GatedTokenChoice(TokenChoice):
    """The weights are the gate's values of the chosen experts, not renormalised.

    All gates rise with the logit, so that the choice is the same; the balance loss has the softmax
    of the logits in any case.
    """

    def __init__(self, config: MoEConfig, settings: TopKRouterConfig | CosineRouterConfig):
        super().__init__(config, settings)
        self.settings = settings

    def logits(self, x_TxD: jax.Array) -> jax.Array:
        """From tokens, float32, to the logits of all experts, float32 [T, E]."""
        raise NotImplementedError

    def __call__(self, x_TxD: jax.Array, conditioning: Conditioning) -> Routing:
        settings = self.settings
        logits_TxE = self.logits(x_TxD.astype(jnp.float32))
        p_TxE = jax.nn.softmax(logits_TxE)
        scores_TxE = p_TxE if settings.gate == "softmax" else GATES[settings.gate](logits_TxE)
        best_TxK, expert_TxK = self.choose(scores_TxE)
        weight_TxK = jnp.take_along_axis(scores_TxE, best_TxK, axis=-1)
        balance = settings.balance_coef * losses.balance_loss(p_TxE, expert_TxK)
        auxiliary = {"balance": balance, **z_term(settings.z_coef, logits_TxE)}
        return self.record(expert_TxK, weight_TxK, scores_TxE, auxiliary, train=conditioning.train)
