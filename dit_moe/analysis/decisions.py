"""What every MoE layer decided for every token, from the record that all routers write."""

from collections.abc import Mapping, Sequence

import flax.struct
import jax
import jax.numpy as jnp

from dit_moe.config import ModelConfig
from dit_moe.models import watched as models_watched
from dit_moe.models.dit import DiT
from dit_moe.moe.assignments import ExpertRanges
from dit_moe.moe.routing import Conditioning, Routing
from dit_moe.nn.feed_forward import Experts

_MEAN_TOKEN = "mean_token"


@flax.struct.dataclass
class Decisions:
    """The choices of L layers for N images of S tokens among E experts."""

    chosen: jax.Array
    """[L, N, S, E] bool: the expert computes the token."""
    first: jax.Array
    """[L, N, S] int32: the token's expert of largest weight; E where it has none."""
    mean_token: jax.Array
    """[L, N, D] float32: mean over an image's tokens of what the router sees."""


def most_experts(config: ModelConfig) -> int:
    """The most experts that any layer has, of all kinds."""
    return max(ExpertRanges.of(moe).none for moe in config.mixtures)


def decisions(routings: Sequence[Routing], num_experts: int, tokens_per_image: int) -> Decisions:
    """Reads stacked records.

    Args:
      routings: of the segments in order, each with a leading layer axis; slots of weight 0 are
        unused. Their metric "mean_token" [L, N, D], where they have one, is passed on.
      num_experts: E, at least as many as any layer has, all kinds included.
      tokens_per_image: S.
    """
    found = [_of_segment(routing, num_experts, tokens_per_image) for routing in routings]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)


def _of_segment(routing: Routing, num_experts: int, tokens_per_image: int) -> Decisions:
    layers, num_tokens = routing.scores.shape[:2]

    def layer(token_A: jax.Array, expert_A: jax.Array, weight_A: jax.Array):
        weight_A = jnp.where(weight_A != 0, weight_A, -jnp.inf)
        weight_TxE = jnp.full((num_tokens, num_experts), -jnp.inf)
        weight_TxE = weight_TxE.at[token_A, expert_A].max(weight_A, mode="drop")
        chosen_TxE = weight_TxE > -jnp.inf
        first_T = jnp.where(chosen_TxE.any(axis=-1), weight_TxE.argmax(axis=-1), num_experts)
        return chosen_TxE, first_T.astype(jnp.int32)

    chosen_LxTxE, first_LxT = jax.vmap(layer)(routing.token, routing.expert, routing.weight)
    images = num_tokens // tokens_per_image
    return Decisions(
        chosen=chosen_LxTxE.reshape(layers, images, tokens_per_image, num_experts),
        first=first_LxT.reshape(layers, images, tokens_per_image),
        mean_token=routing.metrics.get(_MEAN_TOKEN, jnp.zeros((layers, images, 0))),
    )


def _mean_token(
    x_TxD: jax.Array, conditioning: Conditioning, routing: Routing, experts: Experts
) -> dict[str, jax.Array]:
    """The mean of the tokens that a router sees, of every image."""
    del routing, experts
    x_NxSxD = x_TxD.reshape(-1, conditioning.tokens_per_image, x_TxD.shape[-1])
    return {_MEAN_TOKEN: x_NxSxD.astype(jnp.float32).mean(axis=1)}


def watched(config: ModelConfig, parameters: Mapping[str, jax.Array]) -> DiT:
    """The network, whose routing has the metric "mean_token" too. Usable under jit."""
    return models_watched.watched(config, parameters, _mean_token)
