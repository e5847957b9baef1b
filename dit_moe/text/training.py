"""Training on texts: batches in, checkpoints and metrics out."""

from pathlib import Path

from dit_moe.runs.history import check_override
from dit_moe.runs.optimizer import updates_done
from dit_moe.text.config import TextConfig
from dit_moe.text.session import TextSession, build_parts, open_session
from dit_moe.training.health import check_saved
from dit_moe.training.interrupt import Interrupt


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
    opened = open_session(config, workdir, parts, override_resume)
    with Interrupt() as interrupt, opened as session:
        for number in range(int(session.state.step) + 1, config.train.steps + 1):
            _advance(session)
            stopped_by = interrupt.signal or 0
            last = number == config.train.steps or stopped_by != 0
            _record(session, number, last=last)
            if last:
                break
        check_saved(session.checkpoints, session.state)
    return stopped_by or None


def _advance(session: TextSession) -> None:
    session.state, metrics = session.step(session.state, *next(session.stream))
    session.window.add(metrics)
    if session.bar.n == session.bar.initial:
        session.bar.unpause()  # compiling tells nothing of how long the rest will take
    session.bar.update()


def _record(session: TextSession, number: int, *, last: bool) -> None:
    """Writes what is due after step `number`: metrics and a checkpoint."""
    train = session.config.train
    save = number % train.checkpoint_every == 0 or last
    validate = session.validation is not None and train.validates_after(number)
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
