"""The training loop: batches in, checkpoints, metrics and sample grids out."""

from collections.abc import Mapping
from types import MappingProxyType

import jax
from etils import epath
from PIL.Image import Image

from dit_moe.config import Config, ConfigError
from dit_moe.data.array_records import RecordError
from dit_moe.devices import hosts
from dit_moe.runs.checkpoints import TrainingError
from dit_moe.runs.folder import put_back_run
from dit_moe.runs.optimizer import updates_done
from dit_moe.storage.files import check_reachable
from dit_moe.training.health import check_saved
from dit_moe.training.judging import BuildJudge
from dit_moe.training.origin import InitFrom
from dit_moe.training.progress import postfix
from dit_moe.training.session import Session, open_session
from dit_moe.training.step import Metrics
from dit_moe.training.validation import NOT_MEASURED


def train(
    config: Config,
    workdir: epath.PathLike,
    *,
    init_from: str | None = None,
    init_classes: Mapping[str, str] = MappingProxyType({}),
    init_layers: tuple[int, ...] = (),
    override_resume: tuple[str, ...] = (),
    profile_steps: range = range(0),
    wandb: str | None = None,
    build_judge: BuildJudge | None = None,
) -> int | None:
    """Trains to `config.train.steps`, from the newest checkpoint of the workdir if there is one.

    Every process of a distributed run calls it with the same arguments.

    Args:
      config: what to train, on what.
      workdir: the run folder; what `etils.epath` can open, such as gs:// addresses, too.
      init_from: a run folder, an exported folder or a Hugging Face name, from whose averaged
        parameters a new run starts; the step, the optimiser and all averages are fresh. A run that
        resumes goes on from its own.
      init_classes: for classes of the run, which class of that model each starts from, by name or
        by number in the data; others as `training.label_rows.find_rows` says.
      init_layers: for each block of the run, which of that model's blocks it starts from, where
        it has more or fewer.
      override_resume: fields of `config.train` that may differ from those of the run in the
        workdir (`runs.history.OVERRIDABLE`); without one there, they change nothing.
      profile_steps: steps whose profiler trace is written to `workdir / "profile"`.
      wandb: Weights & Biases project that receives the metrics too.
      build_judge: makes what judges samples, where `config.train.evaluate` asks for that.

    Returns:
      None when done, or the number of the signal that stopped it after a save.

    Raises:
      ConfigError: the config does not fit itself, the data, the devices, the run in the workdir or
        the model to start from, or no checkpoint of the workdir can be read.
      TrainingError: the loss is no longer finite, a record of the data cannot be read, or the
        first or last checkpoint could not be saved.
    """
    check_reachable("workdir", workdir)
    for name, given in {"init_classes": init_classes, "init_layers": init_layers}.items():
        if given and init_from is None:
            raise ConfigError(f"{name} is given without init_from; allowed: both, or none")
    if init_layers and config.train.lora is not None:
        raise ConfigError(
            "init_layers is given with config.train.lora, whose additions are to a model as it is; "
            "allowed: one of them"
        )
    asked = None if init_from is None else InitFrom(init_from, init_classes, init_layers)
    folder, steps = epath.Path(workdir), config.train.steps
    with open_session(
        config,
        folder,
        asked,
        override_resume=override_resume,
        profile_steps=profile_steps,
        wandb=wandb,
        build_judge=build_judge,
    ) as session:
        _make_up(session)
        stopped_by = 0
        for number in range(session.first_step + 1, steps + 1):
            metrics = _advance(session, number)
            stopped_by = session.stopped_by()
            last = number == steps or stopped_by != 0
            session.profile.after(number, metrics, last=last)
            _record(session, number, last=last)
            if last:
                break
        check_saved(session.checkpoints, session.state)
        hosts.on_lead(lambda: put_back_run(config, session.sources, folder))
    return stopped_by or None


def _advance(session: Session, number: int) -> Metrics:
    """Does step `number`, which may still be running afterwards."""
    session.profile.before(number)
    try:
        batch = next(session.stream)
    except RecordError as error:
        # Alone, it can keep what is done; several processes would have to agree.
        if number > session.first_step + 1 and jax.process_count() == 1:
            session.checkpoints.save(session.state)
        raise TrainingError(str(error)) from error
    session.state, metrics = session.step(session.state, *batch)
    session.window.add(metrics)
    if number == session.first_step + 1:
        session.bar.unpause()  # compiling tells nothing of how long the rest will take
    session.bar.update()
    return metrics


def _record(session: Session, number: int, *, last: bool) -> None:
    """Writes what is due after step `number`: metrics, a checkpoint, grids, snapshots and what
    samples are worth."""
    settings = session.config.train
    judge = session.judging is not None and session.judging.due(number)
    save = number % settings.checkpoint_every == 0 or last or judge
    validate = session.validation is not None and settings.validates_after(number)
    # A row before every save too, which shows whether updates are being skipped.
    if number % settings.log_every == 0 or save or validate:
        _log(session, number)
    # A state whose own loss was not finite may be of no use: it replaces no checkpoint.
    if save and (last or not session.skips.in_a_row):
        with session.window.paused():
            session.checkpoints.save(session.state)
    if session.milestones.due(number):
        with session.window.paused():
            _show(session, number, session.milestones.write(number, session.state))
    if judge:
        with session.window.paused():
            _judge(session, number)


def _judge(session: Session, number: int) -> None:
    """Judges samples of the state after step `number`, whose row of the metrics is there."""
    assert session.judging is not None
    judgement = session.judging.judge(number, session.state)
    if judgement is None:
        return
    for writer in session.writers:
        with hosts.surviving("metrics"):
            writer.write(number, judgement.values)
    session.judging.keep(judgement)


def _make_up(session: Session) -> None:
    """Does what was due after the last step that was done, and was stopped or killed."""
    number = session.first_step
    _show(session, number, session.milestones.resume(number, session.state))
    if session.judging is not None and session.judging.missing(number):
        _judge(session, number)


def _show(session: Session, number: int, grid: Image | None) -> None:
    """Hands the samples of step `number`, if there are any, to the logs."""
    if grid is not None:
        for writer in session.writers:
            with hosts.surviving("samples"):
                writer.show(number, grid)


def _log(session: Session, number: int) -> None:
    """Tells of the steps since the last line."""
    session.checkpoints.poll()
    scalars, reasons = session.window.close()
    scalars |= _validate(session, number)
    session.warnings.check(number, scalars)
    for writer in session.writers:
        with hosts.surviving("metrics"):
            writer.write(number, scalars)
    session.skips.report(number, reasons, session.checkpoints.latest_step())
    if number == session.config.train.steps:
        session.skips.conclude(number, int(updates_done(session.state.optimizer)))
    session.bar.set_postfix_str(postfix(scalars))


def _validate(session: Session, number: int) -> dict[str, float]:
    """The columns of the held-out data, empty where none is due; no columns without such data."""
    if session.validation is None:
        return {}
    if not session.config.train.validates_after(number):
        return NOT_MEASURED
    with session.window.paused():
        return session.validation.measure(session.state.parameters)
