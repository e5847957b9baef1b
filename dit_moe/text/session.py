"""All that a run on texts is made of, built once; `text.training` is what is done with it."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from etils import epath
from tqdm import tqdm

from dit_moe.config import ConfigError
from dit_moe.runs.checkpoints import Checkpoints
from dit_moe.runs.folder import write_config, write_data_digests, write_parameter_overview
from dit_moe.runs.state import TrainState
from dit_moe.storage.files import lock
from dit_moe.text.config import TextConfig
from dit_moe.text.data import Tokens, batches, digest, load_pairs, to_tokens, vocabulary_of
from dit_moe.text.folder import VOCABULARY
from dit_moe.text.step import build_step, fresh_state
from dit_moe.text.validation import TextValidation
from dit_moe.text.vocabulary import Vocabulary, write_vocabulary
from dit_moe.training.health import Skips, Warnings
from dit_moe.training.logging import MetricsWriter
from dit_moe.training.progress import progress_bar
from dit_moe.training.step import Step
from dit_moe.training.window import Window


@dataclasses.dataclass(frozen=True)
class TextParts:
    """What follows from the config and the data."""

    vocabulary: Vocabulary
    train: Tokens
    heldout: Tokens | None
    digests: Sequence[str]


@dataclasses.dataclass
class TextSession:
    """A run that trains: its state, and what is used step by step."""

    config: TextConfig
    state: TrainState
    step: Step
    stream: Iterator[Tokens]
    checkpoints: Checkpoints
    validation: TextValidation | None
    window: Window
    skips: Skips
    warnings: Warnings
    writer: MetricsWriter
    bar: tqdm


def build_parts(config: TextConfig) -> TextParts:
    """Reads the data, and checks that they fit the config.

    Raises:
      ConfigError: they do not.
    """
    pairs, heldout = load_pairs(config.data, "train"), load_pairs(config.data, "heldout")
    every = config.train.validate_every
    if every and not heldout:
        raise ConfigError(
            f"train.validate_every is {every}, but the data hold nothing out; allowed: 0, or a "
            "file in data.validation_path"
        )
    vocabulary = vocabulary_of(config.data, pairs)
    tokens = to_tokens(pairs, vocabulary, config, config.data.path or "numbers")
    others = config.data.validation_path or "held-out numbers"
    held = to_tokens(heldout, vocabulary, config, others) if heldout and every != 0 else None
    return TextParts(vocabulary, tokens, held, [digest(pairs)])


@contextlib.contextmanager
def open_session(
    config: TextConfig, workdir: Path, parts: TextParts, override_resume: tuple[str, ...]
) -> Iterator[TextSession]:
    """Begins a run or goes on with it, and ends it in order."""
    train, tokens, folder = config.train, len(parts.vocabulary), epath.Path(workdir)
    busy = ConfigError(
        f"workdir {str(workdir)!r} is in use by another run; allowed: another --workdir"
    )
    with contextlib.ExitStack() as held:
        held.enter_context(lock(folder / ".lock", busy))
        checkpoints = held.enter_context(
            Checkpoints(folder, train.keep_checkpoints, train.keep_every)
        )
        newest = checkpoints.latest_step()
        resuming = newest is not None
        write_config(config, folder, resuming=resuming, override=override_resume, step=newest or 0)
        write_data_digests(parts.digests, folder, resuming=resuming)
        write_vocabulary(parts.vocabulary, workdir / VOCABULARY)
        state = fresh_state(config, tokens)
        write_parameter_overview(state, folder)
        print(f"{sum(p.size for p in state.parameters.values()):,} parameters.")
        restored = checkpoints.restore_newest(state)
        if restored is not None:
            state = restored
            print(f"Resuming {workdir} from step {int(state.step):,}.")
        first, mixtures = int(state.step), [] if config.model.moe is None else [config.model.moe]
        yield TextSession(
            config=config,
            state=state,
            step=jax.jit(build_step(config, tokens), donate_argnums=0),
            stream=batches(parts.train, train.batch_size, config.seed, first),
            checkpoints=checkpoints,
            validation=parts.heldout and TextValidation(config, parts.heldout, tokens),
            window=Window(train.batch_size, None, None, "texts"),
            skips=Skips(train.max_skipped, print),
            warnings=Warnings([moe.num_experts for moe in mixtures], print),
            writer=held.enter_context(MetricsWriter(folder, first)),
            bar=held.enter_context(progress_bar(first, train.steps)),
        )
