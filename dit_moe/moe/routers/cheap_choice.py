"""Routers made for cheap experts: of a token's choices some cost nothing (AdaMoE, MoE++)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from dit_moe.config import MixedTopKRouterConfig, MoEConfig, NullTopKRouterConfig
from dit_moe.moe import losses
from dit_moe.moe.assignments import ExpertRanges
from dit_moe.moe.routers.choice import TokenChoice
from dit_moe.moe.routers.scores import init_top_k_kernel, linear_scores, z_term
from dit_moe.moe.routing import Conditioning, Routing
from dit_moe.nn.linear import KAIMING


class NullTopKRouter(TokenChoice):
    """Each token goes to the top_k of true and null experts by softmax over a linear map (AdaMoE,
    section 3).

    The weights of its true experts are renormalised; a token of null experts alone comes out as 0.
    """

    def __init__(
        self, config: MoEConfig, settings: NullTopKRouterConfig, width: int, rngs: nnx.Rngs
    ):
        super().__init__(config, settings, rngs)
        self.settings = settings
        self.kernel = init_top_k_kernel(config.scored_experts, width, rngs)
        # Counted through `Routing.next_state`, exact up to 2^24; its gradient is 0.
        self.updates = nnx.Param(jnp.zeros(1), axes=(None,))

    def __call__(self, x_TxD: jax.Array, conditioning: Conditioning) -> Routing:
        logits_TxE = linear_scores(x_TxD.astype(jnp.float32), self.kernel[...])
        scores_TxE = jax.nn.softmax(logits_TxE)
        best_TxK, expert_TxK = self.choose(scores_TxE, conditioning)
        score_TxK = jnp.take_along_axis(scores_TxE, best_TxK, axis=-1)
        true_TxK = expert_TxK < self.config.num_experts
        counted_TxK = true_TxK if self.settings.sum_over == "true" else jnp.ones_like(true_TxK)
        coef = self._balance_coef()
        balance = coef * self._balance(scores_TxE, expert_TxK)
        routing = self.record(
            expert_TxK,
            renormalised(score_TxK, counted_TxK),
            scores_TxE,
            {"balance": balance, **z_term(self.settings.z_coef, logits_TxE)},
            train=conditioning.train,
        )
        routing = dataclasses.replace(
            routing,
            metrics={
                **routing.metrics,
                "balance_coef": coef,
                "only_null": 1 - true_TxK.any(axis=-1).mean(),
            },
        )
        if not conditioning.train:
            return routing
        state = {**routing.next_state, "updates": self.updates[...] + 1}
        return dataclasses.replace(routing, next_state=state)

    def _balance_coef(self) -> jax.Array:
        s = self.settings
        if s.tight_updates is None:
            return jnp.asarray(s.balance_coef)
        tight = self.updates[...][0] < s.tight_updates
        return jnp.where(tight, s.balance_coef, s.loose_balance_coef)

    def _balance(self, scores_TxE: jax.Array, expert_TxK: jax.Array) -> jax.Array:
        if self.settings.balance == "mean_null":
            return losses.null_balance_loss(scores_TxE, expert_TxK, self.config.num_experts)
        return self.config.top_k * losses.balance_loss(scores_TxE, expert_TxK)


def renormalised(score_TxK: jax.Array, counted_TxK: jax.Array) -> jax.Array:
    """Weights of a token's experts that sum to 1 over those that count, if there are any.

    The others, which give nothing, keep their scores: a weight of 0 would say that they were not
    chosen.
    """
    total_Tx1 = jnp.where(counted_TxK, score_TxK, 0.0).sum(axis=-1, keepdims=True)
    total_Tx1 = jnp.where(total_Tx1 > 0, total_Tx1, 1.0)
    return jnp.where(counted_TxK, score_TxK / total_Tx1, score_TxK)


class MixedTopKRouter(TokenChoice):
    """Each token goes to its top_k experts by softmax, whatever they cost (MoE++, section 3).

    The logits are a map of the token and, but for the first layer's, a linear map of the logits of
    the router before.
    """

    def __init__(
        self, config: MoEConfig, settings: MixedTopKRouterConfig, width: int, rngs: nnx.Rngs
    ):
        super().__init__(config, settings, rngs)
        self.settings = settings
        self.kernels = nnx.List(
            nnx.Param(KAIMING(rngs.params(), shape, jnp.float32), axes=axes)
            for shape, axes in zip(
                settings.own_matrices(width, config), (("embed", None), (None, None)), strict=False
            )
        )
        if settings.gating_residual:
            e, init = config.scored_experts, jax.nn.initializers.normal(0.02)
            self.residual = nnx.Param(init(rngs.params(), (e, e), jnp.float32), axes=(None, None))

    def __call__(self, x_TxD: jax.Array, conditioning: Conditioning) -> Routing:
        config, settings = self.config, self.settings
        ranges = ExpertRanges.of(config)
        logits_TxE = self._logits(x_TxD.astype(jnp.float32))
        if settings.gating_residual:
            logits_TxE += linear_scores(conditioning.previous["logits"], self.residual[...])
        scores_TxE = jax.nn.softmax(logits_TxE)
        best_TxK, expert_TxK = self.choose(scores_TxE, conditioning)
        weight_TxK = jnp.take_along_axis(scores_TxE, best_TxK, axis=-1)
        if settings.weights == "non_zero":
            zero_E = jnp.array([False] * ranges.stack + [kind == "zero" for kind in ranges.cheap])
            weight_TxK = renormalised(weight_TxK, ~zero_E[expert_TxK])
        eta_E = jnp.array([1.0] * ranges.stack + [settings.tau] * len(ranges.cheap))
        balance = settings.balance_coef * losses.uneven_balance_loss(scores_TxE, expert_TxK, eta_E)
        auxiliary = {"balance": balance, **z_term(settings.z_coef, logits_TxE)}
        routing = self.record(
            expert_TxK, weight_TxK, scores_TxE, auxiliary, train=conditioning.train
        )
        if not settings.gating_residual:
            return routing
        return dataclasses.replace(routing, hand_on={"logits": logits_TxE})

    def _logits(self, x_TxD: jax.Array) -> jax.Array:
        *inner, last = self.kernels
        for kernel in inner:
            x_TxD = jnp.tanh(linear_scores(x_TxD, kernel[...]))
        return linear_scores(x_TxD, last[...])
