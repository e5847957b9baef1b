"""How large what the matrices of each expert multiply is, over the tokens that are routed to it."""

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.config import ConfigError
from dit_moe.moe.routing import Conditioning, Routing
from dit_moe.nn.feed_forward import Experts, dense_layer, expert_activation
from dit_moe.surgery.compress.calibration import Calibration
from dit_moe.surgery.compress.statistics import Sums, layer_sums
from dit_moe.surgery.compress.steps import Model


def input_norms(model: Model, calibration: Calibration) -> list[Sums]:
    """What the experts of every MoE layer multiply, in order: `tokens` [E], how many each expert of
    the stack has; `w_in` [E, D] and `w_out` [E, F], the root mean square over them of each input
    of the matrix, 1 where there is no token.

    Raises:
      ConfigError: the routers do not see what experts multiply: an image chooses as one, or nobody
        does.
    """
    for moe in model.config.model.mixtures:
        if moe.router.chooser == "nobody":
            raise ConfigError(
                f"the model's router is {moe.router.name!r}, whose experts see mixes of tokens; "
                "allowed: by=magnitude, or a router that sends tokens to experts"
            )
    if any(moe.choose_by == "image" for moe in model.config.model.mixtures):
        raise ConfigError("the model's moe.choose_by is 'image'; allowed: 'token', or by=magnitude")
    found = layer_sums(model, calibration, "inputs", sum_squares)
    norms = []
    for layer in found:
        tokens_E = layer["tokens"]
        per = np.maximum(tokens_E, 1)[:, None]
        norms.append({"tokens": tokens_E})
        for name in ("w_in", "w_out"):
            mean_square = np.where(tokens_E[:, None] > 0, layer[name] / per, 1.0)
            norms[-1][name] = np.sqrt(mean_square)
    return norms


def sum_squares(
    x_TxD: jax.Array, conditioning: Conditioning, routing: Routing, experts: Experts
) -> dict[str, jax.Array]:
    """`tokens` [E], and the sums of squares `w_in` [E, D] and `w_out` [E, F] over them."""
    del conditioning
    bank = experts.bank()
    own_TxE = jnp.zeros((len(x_TxD), bank.num_experts))
    own_TxE = own_TxE.at[routing.token, routing.expert].set(1.0, mode="drop")

    def of_one(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        own, mine_T = bank.expert(index, x_TxD.dtype), own_TxE[:, index]
        h_TxF = expert_activation(dense_layer(x_TxD, own.w_in, own.b_in), own.kind)
        return mine_T @ _square(x_TxD), mine_T @ _square(h_TxF)

    w_in, w_out = jax.lax.map(of_one, jnp.arange(bank.num_experts))
    return {"tokens": own_TxE.sum(axis=0), "w_in": w_in, "w_out": w_out}


def _square(a: jax.Array) -> jax.Array:
    return jnp.square(a.astype(jnp.float32))
