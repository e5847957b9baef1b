"""What routers in which every token chooses its experts share: the choice and its record."""

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.config import BiasSettings, CosineRouterConfig, MoEConfig, TopKRouterConfig
from dit_moe.config.moe import rank_of
from dit_moe.moe import losses
from dit_moe.moe.assignments import ExpertRanges
from dit_moe.moe.routers.capacity import within_capacity
from dit_moe.moe.routers.draws import advanced, counter, key_of
from dit_moe.moe.routers.load_bias import next_bias
from dit_moe.moe.routers.scores import GATES, z_term
from dit_moe.moe.routing import Conditioning, Routing


class TokenChoice(nnx.Module):
    """A router that scores all experts, of which every token takes its top_k: those of score plus
    bias, where the settings have biases; in training, as many as the experts have room for."""

    draw: nnx.Param | None = None

    def __init__(self, config: MoEConfig, balance: BiasSettings, rngs: nnx.Rngs):
        self.config, self.balance = config, balance
        if balance.capacity_factor is not None:
            self.draw = counter(rngs)
        # Updated through `Routing.next_state`; its gradient is 0.
        biases = balance.biases(config)
        self.bias = nnx.Param(jnp.zeros(biases), axes=(None,)) if biases else None

    def choose(
        self, scores_TxE: jax.Array, conditioning: Conditioning
    ) -> tuple[jax.Array, jax.Array]:
        """The top_k experts of every token by score and bias, whose scores are its weights, and
        those that it goes to: the same, or others by `MoEConfig.choice`, where a single one stands
        in all places."""
        if self.bias is not None:
            scores_TxE += self.bias[...]
        _, best_TxK = jax.lax.top_k(scores_TxE, self.config.top_k)
        choice, rank = self.config.choice, rank_of(self.config.choice)
        if choice == "least_likely":
            return best_TxK, jax.lax.top_k(-scores_TxE, self.config.top_k)[1]
        if choice == "random":
            num_tokens, num_experts = scores_TxE.shape
            one_T = _by_lot(num_tokens, num_experts, conditioning.tokens_per_image)
        elif rank is not None:
            one_T = jax.lax.top_k(scores_TxE, rank)[1][:, -1]
        else:
            return best_TxK, best_TxK
        return best_TxK, jnp.broadcast_to(one_T[:, None], best_TxK.shape)

    def record(
        self,
        expert_TxK: jax.Array,
        weight_TxK: jax.Array,
        scores_TxE: jax.Array,
        auxiliary: dict[str, jax.Array],
        *,
        train: bool,
    ) -> Routing:
        """Every token has K assignments, in token order; a training step moves the biases and
        drops what experts have no room for. Where a token's expert is a single one, it has one
        assignment, with the sum of the weights."""
        if self.config.one_expert:
            expert_TxK = expert_TxK[:, :1]
            weight_TxK = weight_TxK.sum(axis=-1, keepdims=True)
        num_tokens, top_k = expert_TxK.shape
        state, metrics = {}, {}
        if train and self.bias is not None:
            state["bias"] = next_bias(self.bias[...], expert_TxK, self.balance, self.config)
        if train and self.draw is not None:
            state["draw"] = advanced(self.draw[...])
        capacity = self.balance.capacity(num_tokens, self.config)
        if train and capacity is not None:
            kept_TxK, routed_TxK = self._kept(expert_TxK, capacity)
            dropped = jnp.sum(~kept_TxK, dtype=jnp.float32)
            metrics["dropped"] = dropped / jnp.maximum(routed_TxK.sum(), 1)
            expert_TxK = jnp.where(kept_TxK, expert_TxK, ExpertRanges.of(self.config).none)
            weight_TxK = jnp.where(kept_TxK, weight_TxK, 0.0)
        return Routing(
            token=jnp.repeat(jnp.arange(num_tokens, dtype=jnp.int32), top_k),
            expert=expert_TxK.reshape(-1),
            weight=weight_TxK.reshape(-1),
            scores=scores_TxE,
            losses=auxiliary,
            metrics=metrics,
            next_state=state,
        )

    def _kept(self, expert_TxK: jax.Array, capacity: int) -> tuple[jax.Array, jax.Array]:
        """What the experts have room for, and what goes to one with a capacity: [T, K] bool."""
        assert self.draw is not None
        num_experts, key = self.config.num_experts, key_of(self.draw[...], purpose=1)
        kept_TxK = within_capacity(expert_TxK, num_experts, capacity, key)
        return kept_TxK, expert_TxK < num_experts


def _by_lot(num_tokens: int, num_experts: int, tokens_per_image: int) -> jax.Array:
    """An expert for every token, int32 [T]: by its place in the image alone, always the same one.

    Drawn anew at every evaluation, the field that is integrated would jump, and solvers of higher
    order would gain nothing; drawn for an image, it would depend on the others of its batch.
    """
    lot_S = jax.random.randint(jax.random.key(0), (tokens_per_image,), 0, num_experts)
    return jnp.tile(lot_S, num_tokens // tokens_per_image)


class GatedTokenChoice(TokenChoice):
    """The weights are the gate's values of the chosen experts, not renormalised.

    All gates rise with the logit, so that the choice is the same; the balance loss has the softmax
    of the logits in any case.
    """

    def __init__(
        self, config: MoEConfig, settings: TopKRouterConfig | CosineRouterConfig, rngs: nnx.Rngs
    ):
        super().__init__(config, settings, rngs)
        self.settings = settings

    def logits(self, x_TxD: jax.Array) -> jax.Array:
        """From tokens, float32, to the logits of all experts, float32 [T, E]."""
        raise NotImplementedError

    def __call__(self, x_TxD: jax.Array, conditioning: Conditioning) -> Routing:
        settings = self.settings
        logits_TxE = self.logits(x_TxD.astype(jnp.float32))
        p_TxE = jax.nn.softmax(logits_TxE)
        scores_TxE = p_TxE if settings.gate == "softmax" else GATES[settings.gate](logits_TxE)
        best_TxK, expert_TxK = self.choose(scores_TxE, conditioning)
        weight_TxK = jnp.take_along_axis(scores_TxE, best_TxK, axis=-1)
        balance = settings.balance_coef * losses.balance_loss(p_TxE, expert_TxK)
        auxiliary = {"balance": balance, **z_term(settings.z_coef, logits_TxE)}
        return self.record(expert_TxK, weight_TxK, scores_TxE, auxiliary, train=conditioning.train)
