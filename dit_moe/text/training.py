"""Training on texts: batches in, checkpoints and metrics out."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from etils import epath
from tqdm import tqdm

from dit_moe.config import ConfigError
from dit_moe.models.parameters import Parameters
from dit_moe.runs.checkpoints import Checkpoints, TrainingError
from dit_moe.runs.folder import write_config, write_data_digests, write_parameter_overview
from dit_moe.runs.history import check_override
from dit_moe.runs.optimizer import updates_done
from dit_moe.runs.state import TrainState
from dit_moe.storage.files import lock
from dit_moe.text.config import TextConfig
from dit_moe.text.data import Tokens, batches, digest, load_pairs, to_tokens, vocabulary_of
from dit_moe.text.folder import VOCABULARY
from dit_moe.text.network import functional
from dit_moe.text.objective import text_loss
from dit_moe.text.step import build_step, fresh_state
from dit_moe.text.vocabulary import Vocabulary, write_vocabulary
from dit_moe.training.health import Skips, Warnings
from dit_moe.training.interrupt import Interrupt
from dit_moe.training.logging import MetricsWriter, summarize
from dit_moe.training.progress import progress_bar
from dit_moe.training.step import Metrics, Step
from dit_moe.training.window import Window

_VALIDATION = "validation/"
_SEED = 0
"""What held-out batches and their noise are drawn from, whatever the run's own."""


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
    validation: "TextValidation | None"
    window: Window
    skips: Skips
    warnings: Warnings
    writer: MetricsWriter
    bar: tqdm


class TextValidation:
    """The loss on the first batches of the held-out texts, with times and noise that never change.

    Args:
      config: of the run.
      heldout: at least one pair.
      tokens: of the vocabulary.
    """

    def __init__(self, config: TextConfig, heldout: Tokens, tokens: int):
        train = config.train
        every = train.validate_every
        self._every = train.checkpoint_every if every is None else every
        self._steps = train.steps
        stream = batches(heldout, train.batch_size, _SEED)
        self._batches = [*itertools.islice(stream, train.validation_batches)]
        bind = functional(config, tokens)

        @jax.jit
        def loss(parameters: Parameters, key: jax.Array, *batch: jax.Array) -> Metrics:
            return text_loss(bind(parameters), key, *batch)[1].metrics

        self._loss = loss

    def due(self, number: int) -> bool:
        """Whether to measure after step `number`."""
        return number % self._every == 0 or number == self._steps

    def measure(self, parameters: Parameters) -> dict[str, float]:
        """The metrics by name, with a prefix."""
        key = jax.random.key(_SEED)
        found = [
            self._loss(parameters, jax.random.fold_in(key, i), *batch)
            for i, batch in enumerate(self._batches)
        ]
        return {f"{_VALIDATION}{name}": value for name, value in summarize(found).items()}


def train_on_texts(
    config: TextConfig, workdir: Path, *, override_resume: tuple[str, ...] = ()
) -> int | None:
    """Trains to `config.train.steps`, from the newest checkpoint of the workdir if there is one.

    Args:
      config: what to train, on what.
      workdir: the run folder, on this machine.
      override_resume: as of `training.loop.train`.

    Returns:
      None when done, or the number of the signal that stopped it after a save.

    Raises:
      ConfigError: the config does not fit the data or the run in the workdir.
      TrainingError: the loss is no longer finite, or a checkpoint could not be saved.
    """
    check_override(override_resume)
    parts = build_parts(config)
    stopped_by = 0
    with Interrupt() as interrupt, _session(config, workdir, parts, override_resume) as session:
        for number in range(int(session.state.step) + 1, config.train.steps + 1):
            _advance(session)
            stopped_by = interrupt.signal or 0
            last = number == config.train.steps or stopped_by != 0
            _record(session, number, last=last)
            if last:
                break
        newest, step = session.checkpoints.newest_on_disk(), int(session.state.step)
        if newest != step:
            raise TrainingError(f"the last state, of step {step:,}, could not be saved")
    return stopped_by or None


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
def _session(
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


def _advance(session: TextSession) -> None:
    session.state, metrics = session.step(session.state, *next(session.stream))
    session.window.add(metrics)
    session.bar.update()


def _record(session: TextSession, number: int, *, last: bool) -> None:
    """Writes what is due after step `number`: metrics and a checkpoint."""
    train = session.config.train
    save = number % train.checkpoint_every == 0 or last
    validate = session.validation is not None and session.validation.due(number)
    if number % train.log_every == 0 or save or validate:
        _log(session, number, validate=validate)
    # A state whose own loss was not finite may be of no use: it replaces no checkpoint.
    if save and (last or not session.skips.in_a_row):
        with session.window.paused():
            session.checkpoints.save(session.state)


def _log(session: TextSession, number: int, *, validate: bool) -> None:
    session.checkpoints.poll()
    scalars, reasons = session.window.close()
    if validate and session.validation is not None:
        with session.window.paused():
            scalars |= session.validation.measure(session.state.parameters)
    session.warnings.check(number, scalars)
    session.writer.write(number, scalars)
    session.skips.report(number, reasons, session.checkpoints.latest_step())
    if number == session.config.train.steps:
        session.skips.conclude(number, int(updates_done(session.state.optimizer)))
    session.bar.set_postfix_str(
        f"loss {scalars['loss']:.4f}, {scalars['right_tokens']:.1%} of tokens right, "
        f"{scalars['texts_per_second']:.0f} texts/s"
    )
