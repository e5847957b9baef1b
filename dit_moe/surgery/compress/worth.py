"""What each routed expert of a layer is worth, by one of several measures."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.config import ConfigError
from dit_moe.moe.losses import assignment_counts
from dit_moe.moe.routing import Conditioning, Routing
from dit_moe.nn.feed_forward import Experts, dense_layer, expert_activation
from dit_moe.surgery.compress.calibration import Calibration
from dit_moe.surgery.compress.statistics import layer_sums
from dit_moe.surgery.compress.steps import Model

Worth = Literal["use", "output", "random"]
"""`use`: how many tokens it computes (Kim et al. 2021, Z-code M3). `output`: the mean over its
tokens of its weight times the norm of what it gives (REAP, Lasby et al. 2025). `random`: by lot."""


def worth_of(
    model: Model, by: Worth, calibration: Calibration | None, seed: int
) -> list[np.ndarray]:
    """What the experts of every MoE layer are worth, [E] each, in order.

    Raises:
      ConfigError: the measure needs what each token gives, but an image chooses as one.
    """
    mixtures = model.config.model.mixtures
    if by == "random":
        return [
            np.random.default_rng([seed, layer]).permutation(moe.num_experts).astype(float)
            for layer, moe in enumerate(mixtures)
        ]
    assert calibration is not None
    if by == "use":
        sums = layer_sums(model, calibration, "use", count_use, by_time=True)
        found = [layer["use"].sum(axis=0) for layer in sums]
        return [use_S[: moe.num_experts] for use_S, moe in zip(found, mixtures, strict=True)]
    if any(moe.choose_by == "image" for moe in mixtures):
        raise ConfigError("by is 'output' where moe.choose_by is 'image'; allowed: use, random")
    sums = layer_sums(model, calibration, "output", weigh_outputs)
    found = [layer["output"] / np.maximum(layer["use"], 1) for layer in sums]
    return [mean_S[: moe.num_experts] for mean_S, moe in zip(found, mixtures, strict=True)]


def count_use(
    x_TxD: jax.Array, conditioning: Conditioning, routing: Routing, experts: Experts
) -> dict[str, jax.Array]:
    """`use` [E]: tokens of every routed expert; what has weight 0 is not computed for anything."""
    del x_TxD, conditioning
    stack = experts.bank().num_experts
    used_A = jnp.where(routing.weight != 0, routing.expert, stack)
    return {"use": assignment_counts(used_A, stack)}


def weigh_outputs(
    x_TxD: jax.Array, conditioning: Conditioning, routing: Routing, experts: Experts
) -> dict[str, jax.Array]:
    """`use`, and `output` [E]: the sum over an expert's tokens of |weight| times the norm of what
    it gives. Every expert computes every token, one after another."""
    bank = experts.bank()
    stack = bank.num_experts
    weight_TxE = jnp.zeros((len(x_TxD), stack))
    weight_TxE = weight_TxE.at[routing.token, routing.expert].add(
        jnp.abs(routing.weight), mode="drop"
    )

    def of_one(index: jax.Array) -> jax.Array:
        own = bank.expert(index, x_TxD.dtype)
        h_TxF = expert_activation(dense_layer(x_TxD, own.w_in, own.b_in), own.kind)
        y_TxD = dense_layer(h_TxF, own.w_out, own.b_out)
        return jnp.linalg.norm(y_TxD.astype(jnp.float32), axis=-1) @ weight_TxE[:, index]

    outputs_E = jax.lax.map(of_one, jnp.arange(stack))
    return {**count_use(x_TxD, conditioning, routing, experts), "output": outputs_E}
