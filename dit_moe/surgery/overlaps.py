"""A router before the trunk that learns which expert has most of a token's units (Read-ME)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dit_moe.config import Config, ConfigError
from dit_moe.models.parameters import Parameters
from dit_moe.models.pregate import Pregate
from dit_moe.nn.flat import bind, variables
from dit_moe.surgery.activity import activations

LEARNING_RATE = 1e-3
"""Of Adam, at first; it falls to 0 along a cosine."""
_PREGATE = "trunk.pregate."


class Shown(NamedTuple):
    """What a network is asked."""

    x: jax.Array
    """[N, H, W, C] float32."""
    t: jax.Array
    """[N] in the network's unit."""
    y: jax.Array
    """[N] int32."""


class Distilled(NamedTuple):
    """A router that has learnt."""

    parameters: dict[str, np.ndarray]
    """By dotted path in the network that has it."""
    agreement: float
    """The share of the last batch's tokens that go to the expert with most of their units."""


def overlap(activity: Sequence[jax.Array], mask: Sequence[np.ndarray]) -> jax.Array:
    """How many of a token's units every expert has, on average over layers: float32 [T, E].

    A token's units of a layer are those above the median, one half of all.

    Args:
      activity: [N, S, F] sizes of all units, of every layer.
      mask: [E, F] bool of the same layers.
    """
    counts = []
    for size_NxSxF, mask_ExF in zip(activity, mask, strict=True):
        size_TxF = size_NxSxF.reshape(-1, size_NxSxF.shape[-1])
        own_TxF = size_TxF > jnp.median(size_TxF, axis=-1, keepdims=True)
        counts.append(own_TxF.astype(jnp.float32) @ jnp.asarray(mask_ExF, jnp.float32).T)
    return jnp.stack(counts).mean(axis=0)


def distil(
    config: Config,
    old: Config,
    parameters: Parameters,
    mask: Mapping[int, np.ndarray],
    shown: Iterator[Shown],
    steps: int,
) -> Distilled:
    """Trains a fresh router before the trunk on the overlaps that a dense network shows.

    The loss is the divergence of its scores, as probabilities, from the softmax of the overlaps.

    Args:
      config: of the network with experts.
      old: of the dense one.
      parameters: of the dense one.
      mask: of the routed experts by the number of the block.
      shown: batches without end.
      steps: how many of them to learn from.

    Raises:
      ConfigError: a token's experts have other weights than 1.
    """
    pregate = Pregate(config.model, nnx.Rngs(params=jax.random.key(config.seed)))
    learnt = {path: variable[...] for path, variable in variables(pregate).items()}
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))

    @jax.jit
    def step(learnt: dict[str, jax.Array], state: optax.OptState, dense: Parameters, seen: Shown):
        activity, tokens, given = activations(old.model, dense, *seen)
        wanted_TxE = overlap([activity[n] for n in mask], list(mask.values()))

        def loss(learnt: dict[str, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            routing = bind(pregate, learnt)(tokens, given)
            p_TxE = jnp.maximum(routing.scores, 1e-20)
            p_TxE /= p_TxE.sum(axis=-1, keepdims=True)
            log_ratio = jnp.log(p_TxE) - jax.nn.log_softmax(wanted_TxE)
            agrees = routing.expert == wanted_TxE.argmax(axis=-1)
            return jnp.sum(p_TxE * log_ratio, axis=-1).mean(), (agrees.mean(), routing.weight)

        gradient, (agrees, weight_T) = jax.grad(loss, has_aux=True)(learnt)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(learnt, updates), state, agrees, jnp.abs(weight_T - 1).max()

    state, agrees = optimizer.init(learnt), 0.0
    for _ in range(steps):
        learnt, state, agrees, off = step(learnt, state, parameters, next(shown))
        if off > 1e-5:
            raise ConfigError(
                f"config.model.moe.router.name is {config.model.mixtures[0].router.name!r}, whose "
                "weight of a token's one expert is not 1; allowed: a router whose weights sum to "
                "1, such as 'null_top_k' without cheap experts"
            )
    found = {f"{_PREGATE}{path}": np.asarray(value) for path, value in learnt.items()}
    return Distilled(found, float(agrees))
