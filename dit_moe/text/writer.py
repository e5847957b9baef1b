"""Texts from a run: for every source some candidates, and of these the best."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from dit_moe.config import require
from dit_moe.config.rules import check_seed
from dit_moe.text.best import best_candidate
from dit_moe.text.data import source_tokens
from dit_moe.text.folder import TextRun, load_text_run
from dit_moe.text.metrics import sentence_bleu
from dit_moe.text.sampler import build_sampler

STEPS = 20
MAX_BATCH = 65_536


class Answer(NamedTuple):
    """What is made of one source."""

    text: str
    """The best of the candidates."""
    candidates: tuple[str, ...]


class TextWriter:
    """A run on texts made ready to write.

    Args:
      workdir: the run folder.
      ema: the moving average of the parameters rather than the parameters.
      checkpoint: see `Checkpoints.find`.
      steps: of denoising.
      clamp: every estimate is replaced by the nearest embeddings.
      candidates: for each source; the best by minimum Bayes risk is taken.
      batch_size: sources per pass.
      seed: of all texts together.

    Raises:
      ConfigError: the run or an argument cannot be used.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        ema: bool = True,
        checkpoint: str = "newest",
        steps: int = STEPS,
        clamp: bool = False,
        candidates: int = 1,
        batch_size: int = 256,
        seed: int = 0,
    ):
        require(1 <= candidates <= 1000, f"candidates is {candidates}; allowed: 1 to 1000")
        require(
            1 <= batch_size <= MAX_BATCH, f"batch_size is {batch_size}; allowed: 1 to {MAX_BATCH}"
        )
        check_seed(seed)
        self.run: TextRun = load_text_run(workdir, ema=ema, checkpoint=checkpoint)
        tokens = len(self.run.vocabulary)
        self._sample = jax.jit(build_sampler(self.run.config, tokens, steps, clamp=clamp))
        self._candidates, self._batch_size, self._seed = candidates, batch_size, seed

    def write(self, sources: Sequence[str]) -> list[Answer]:
        """An answer to each source; it depends on the seed, the source and its place alone, but
        for what its batch may change in the last bits.

        Raises:
          ConfigError: a source is longer than the model takes.
        """
        utility = sentence_bleu() if self._candidates > 1 else _never
        config = self.run.config
        source_NxS = source_tokens(
            sources, self.run.vocabulary, config.model, cut_off=config.data.cut_off
        )
        drawn = [self._draw(source_NxS, number) for number in range(self._candidates)]
        return [
            Answer(candidates[best_candidate(candidates, utility)], candidates)
            for candidates in zip(*drawn, strict=True)
        ]

    def _draw(self, source_NxS: np.ndarray, number: int) -> list[str]:
        """Candidate `number` of every source."""
        size = min(self._batch_size, len(source_NxS))
        key = jax.random.fold_in(jax.random.key(self._seed), number)
        texts: list[str] = []
        for first in tqdm(range(0, len(source_NxS), size), unit="batch", dynamic_ncols=True):
            # The last batch is filled up, so that the sampler is compiled once.
            place = jnp.arange(first, first + size)
            key_N = jax.vmap(lambda i: jax.random.fold_in(key, i))(place)
            batch = np.take(source_NxS, place, axis=0, mode="wrap")
            tokens = np.asarray(self._sample(self.run.parameters, batch, key_N))
            texts += [self.run.vocabulary.decode(row) for row in tokens]
        return texts[: len(source_NxS)]


def _never(text: str, other: str) -> float:
    raise AssertionError("a single candidate is judged by no other")
