"""How well the experts of the next layer are known before its router has decided.

Three predictors: the layer's own router on the tokens as they enter the unit before (`gate`), what
the layer used at the evaluation before (`before`), and whatever one of them names (`both`). They
can change the order of reads and never what is computed.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.config import ModelConfig
from dit_moe.diffusion.objective import Network
from dit_moe.models.foresight import foresee
from dit_moe.models.parameters import Parameters, functional
from dit_moe.models.prediction import Prediction
from dit_moe.moe.assignments import ExpertRanges


class Foresight:
    """Keeps which experts are used and foreseen, call by call. To be made, used and read under one
    `jit`.

    Args:
      model: with experts that are chosen.
      calls: how often the network is called.
    """

    def __init__(self, model: ModelConfig, calls: int):
        self._model = model
        self._experts = max(ExpertRanges.of(moe).stack for moe in model.mixtures)
        shape = (2, calls, len(model.mixtures), self._experts)
        self._tokens = jax.new_ref(jnp.zeros(shape, jnp.int32))
        self._calls = jax.new_ref(jnp.int32(0))

    def bind(self, parameters: Parameters) -> Network:
        """The network with these parameters, looked at."""
        model = functional(self._model)(parameters)

        def network(x: jax.Array, t_N: jax.Array, y_N: jax.Array) -> Prediction:
            x_NxSxD, given, grid = model.enter(x, t_N, y_N)
            x_NxSxD, used, foreseen = foresee(model.trunk, x_NxSxD, given, self._experts)
            self._tokens[:, self._calls[...]] = jnp.stack([used, foreseen])
            self._calls[...] += 1
            return Prediction(model.leave(x_NxSxD, given, grid), routing=(), losses={})

        return network

    def tokens(self) -> jax.Array:
        """Of each expert, as used and as foreseen by `gate`: int32 [2, V, L, E] of V calls and L
        layers."""
        return self._tokens[...]


class Told(NamedTuple):
    """What a predictor told, by call and layer."""

    used: np.ndarray
    """[V, L] experts that were used."""
    found: np.ndarray
    """[V, L] of these, the ones that it named."""
    in_vain: np.ndarray
    """[V, L] others that it named."""

    @property
    def missed(self) -> np.ndarray:
        """[V, L] experts that would be read when they are asked for."""
        return self.used - self.found

    def recall(self, axis: int | None = None) -> np.ndarray:
        """The share of the used experts that was named, over an axis or all; 1 where none was."""
        used, found = self.used.sum(axis), self.found.sum(axis)
        return np.where(used > 0, found / np.maximum(used, 1), 1.0)


def predictors(tokens_2xVxLxE: np.ndarray) -> Mapping[str, Told]:
    """The predictors by name, from `Foresight.tokens`. Of the first call `before` tells nothing."""
    used, gate = tokens_2xVxLxE > 0
    before = np.concatenate([np.zeros_like(used[:1]), used[:-1]])
    named = {"gate": gate, "before": before, "both": gate | before}
    return {
        name: Told(used.sum(-1), (used & own).sum(-1), (own & ~used).sum(-1))
        for name, own in named.items()
    }


def table(told: Mapping[str, Told], block: int) -> str:
    """All predictors in words.

    Args:
      told: by name.
      block: bytes of an expert as it is stored.
    """
    lines = ["| predictor | recall | experts missed | read late, MB | read in vain, MB |"]
    lines.append("|---|---|---|---|---|")
    for name, own in told.items():
        missed, vain = int(own.missed.sum()), int(own.in_vain.sum())
        lines.append(
            f"| {name} | {own.recall():.1%} | {missed:,} of {int(own.used.sum()):,} | "
            f"{missed * block / 1e6:.3g} | {vain * block / 1e6:.3g} |"
        )
    for axis, what in ((0, "layer"), (1, "evaluation")):
        header = " | ".join(f"{name}: recall, missed" for name in told)
        lines += ["", f"| {what} | {header} |", "|---" * (len(told) + 1) + "|"]
        columns = [(own.recall(axis), own.missed.sum(axis)) for own in told.values()]
        for number in range(len(columns[0][0])):
            cells = [f"{recall[number]:.1%}, {missed[number]}" for recall, missed in columns]
            lines.append(f"| {number} | {' | '.join(cells)} |")
    return "\n".join(lines)
