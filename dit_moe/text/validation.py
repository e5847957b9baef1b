"""The loss on held-out texts, measured now and then with the same noise."""

import itertools

import jax

from dit_moe.models.parameters import Parameters
from dit_moe.text.config import TextConfig
from dit_moe.text.data import Tokens, batches
from dit_moe.text.network import functional
from dit_moe.text.objective import text_loss
from dit_moe.training.logging import summarize
from dit_moe.training.step import Metrics

_PREFIX = "validation/"
_SEED = 0
"""What held-out batches and their noise are drawn from, whatever the run's own."""


class TextValidation:
    """The loss on the first batches of the held-out texts, with times and noise that never change.

    Args:
      config: of the run.
      heldout: at least one pair.
      tokens: of the vocabulary.
    """

    def __init__(self, config: TextConfig, heldout: Tokens, tokens: int):
        train = config.train
        stream = batches(heldout, train.batch_size, _SEED)
        self._batches = [*itertools.islice(stream, train.validation_batches)]
        bind = functional(config, tokens)

        @jax.jit
        def loss(parameters: Parameters, key: jax.Array, *batch: jax.Array) -> Metrics:
            return text_loss(bind(parameters), key, *batch)[1].metrics

        self._loss = loss

    def measure(self, parameters: Parameters) -> dict[str, float]:
        """The metrics by name, with a prefix."""
        key = jax.random.key(_SEED)
        found = [
            self._loss(parameters, jax.random.fold_in(key, i), *batch)
            for i, batch in enumerate(self._batches)
        ]
        return {f"{_PREFIX}{name}": value for name, value in summarize(found).items()}
