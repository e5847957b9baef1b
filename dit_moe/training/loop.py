"""The training loop: batches in, checkpoints, metrics and sample grids out."""

import contextlib
import math
import sys
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath
from tqdm import tqdm

from dit_moe.config import Config, ConfigError
from dit_moe.data.array_records import RecordError
from dit_moe.data.classes import count_classes
from dit_moe.data.pipeline import device_batches
from dit_moe.data.sources import build_sources
from dit_moe.devices import hosts
from dit_moe.devices.accelerators import find_device
from dit_moe.devices.mesh import batch_sharding, build_mesh, check_mesh, replicated
from dit_moe.plan.estimate import estimate
from dit_moe.plan.host import check_host_memory
from dit_moe.runs.checkpoints import Checkpoints, TrainingError
from dit_moe.runs.folder import put_back_run, write_parameter_overview, write_run
from dit_moe.runs.state import abstract_state, init_state, start_state, updates_done
from dit_moe.sampling.request import Request
from dit_moe.storage.files import check_reachable, lock
from dit_moe.training.grids import grid_request
from dit_moe.training.health import Skips, Warnings
from dit_moe.training.interrupt import Interrupt
from dit_moe.training.logging import MetricsWriter
from dit_moe.training.milestones import Milestones
from dit_moe.training.origin import check_origin, prepare_origin, start_parameters
from dit_moe.training.profile import Profile
from dit_moe.training.step import build_step
from dit_moe.training.window import Window


def train(
    config: Config,
    workdir: epath.PathLike,
    *,
    init_from: str | None = None,
    profile_steps: range = range(0),
    wandb: str | None = None,
) -> int | None:
    """Trains to `config.train.steps`, from the newest checkpoint of the workdir if there is one.

    Every process of a distributed run calls it with the same arguments.

    Args:
      config: what to train, on what.
      workdir: the run folder; what `etils.epath` can open, such as gs:// addresses, too.
      init_from: a run folder, an exported folder or a Hugging Face name, from whose averaged
        parameters a new run starts; the step, the optimiser and all averages are fresh. A run that
        resumes goes on from its own.
      profile_steps: steps whose profiler trace is written to `workdir / "profile"`.
      wandb: Weights & Biases project that receives the metrics too.

    Returns:
      None when done, or the number of the signal that stopped it after a save.

    Raises:
      ConfigError: the config does not fit itself, the data, the devices, the run in the workdir or
        the model to start from, or no checkpoint of the workdir can be read.
      TrainingError: the loss is no longer finite, a record of the data cannot be read, or the
        first or last checkpoint could not be saved.
    """
    check_reachable("workdir", workdir)
    workdir = epath.Path(workdir)
    mesh = build_mesh(config.mesh)
    check_mesh(mesh, config.model)
    device = find_device(jax.devices()[0].device_kind)
    plan = estimate(config, mesh.shape, device)
    check_host_memory(plan)
    sources = build_sources(config)
    settings = config.train
    request = _grid_request(config, count_classes(sources).learnt())

    with contextlib.ExitStack() as held, jax.set_mesh(mesh), Interrupt() as interrupt:
        busy = ConfigError(
            f"workdir {str(workdir)!r} is in use by another run; allowed: another --workdir"
        )
        hosts.on_lead(lambda: held.enter_context(lock(workdir / ".lock", busy)))
        checkpoints = held.enter_context(
            Checkpoints(workdir, settings.keep_checkpoints, settings.keep_every)
        )
        resuming = checkpoints.latest_step() is not None
        like = abstract_state(config, mesh)
        if init_from is not None and not resuming:
            check_origin(init_from, config, sources[0].latent_space)

        milestones = Milestones(config, request, sources[0].latent_space, mesh, workdir)

        def prepare_folder() -> None:
            write_run(config, sources, workdir, resuming=resuming)
            prepare_origin(init_from, workdir, resuming=resuming)
            write_parameter_overview(like, workdir)

        hosts.on_lead(prepare_folder)
        count = sum(p.size for p in like.parameters.values())
        hosts.say(f"{count:,} parameters, listed in {workdir / 'parameters.txt'}.")
        hosts.say(f"{plan.sentence()}.")
        state = checkpoints.restore_newest(like)
        if state is not None:
            hosts.say(f"Resuming {workdir} from step {int(state.step):,}.")
        elif init_from is not None:
            parameters = start_parameters(
                init_from,
                workdir,
                like.parameters,  # pyright: ignore[reportArgumentType]
            )
            state = start_state(config, mesh, parameters)
        else:
            state = init_state(config, mesh)
        first_step = int(state.step)
        milestones.resume(first_step, state)
        step = jax.jit(
            build_step(config),
            donate_argnums=0,
            out_shardings=(jax.tree.map(lambda a: a.sharding, like), replicated(mesh)),
        )
        window = Window(config, plan.flops_per_image, device, mesh.size)
        skips = Skips(settings.max_skipped, hosts.say)
        warnings = Warnings([moe.num_experts for moe in config.model.mixtures], hosts.say)
        profile = Profile(profile_steps, workdir / "profile")
        stop = hosts.Agreement(mesh)
        stopped_by = 0

        writers: list[MetricsWriter] = []  # of the lead alone
        hosts.on_lead(
            lambda: writers.append(held.enter_context(MetricsWriter(workdir, first_step, wandb)))
        )
        bar = held.enter_context(_progress_bar(first_step, settings.steps))
        stream = device_batches(config, sources, first_step, batch_sharding(mesh))
        for number in range(first_step + 1, settings.steps + 1):
            profile.before(number)
            try:
                batch = next(stream)
            except RecordError as error:
                # Alone, it can keep what is done; several processes would have to agree.
                if number > first_step + 1 and jax.process_count() == 1:
                    checkpoints.save(state)
                raise TrainingError(str(error)) from error
            state, metrics = step(state, *batch)
            window.add(metrics)
            bar.update()
            stopped_by = stop(interrupt.signal or 0)
            end = number == settings.steps
            last = end or stopped_by != 0
            profile.after(number, metrics, last=last)

            save = number % settings.checkpoint_every == 0 or last
            # A row before every save too, which shows whether updates are being skipped.
            if number % settings.log_every == 0 or save:
                checkpoints.poll()
                scalars, reasons = window.close()
                warnings.check(number, scalars)
                for writer in writers:
                    with hosts.surviving("metrics"):
                        writer.write(number, scalars)
                skips.report(number, reasons, checkpoints.latest_step())
                if end:
                    skips.conclude(number, int(updates_done(state.optimizer)))
                bar.set_postfix_str(_postfix(scalars))
            # A state whose own loss was not finite may be of no use: it replaces no checkpoint.
            if save and (last or not skips.in_a_row):
                with window.paused():
                    checkpoints.save(state)
            if milestones.due(number):
                with window.paused():
                    milestones.write(number, state)
            if last:
                break
        newest = checkpoints.newest_on_disk()
        if newest != int(state.step):
            raise TrainingError(
                f"the last state, of step {int(state.step):,}, could not be saved; the newest "
                f"checkpoint is {'none' if newest is None else f'step {newest:,}'}"
            )
        hosts.on_lead(lambda: put_back_run(config, sources, workdir))
    return stopped_by or None


def _grid_request(config: Config, learnt: Sequence[int]) -> Request | None:
    """What grids show, or None without grids; without them too, what samples will lack is said."""
    try:
        request = grid_request(config, learnt)
    except ConfigError as error:
        if config.train.sample_every:
            raise
        hosts.say(f"Samples of this run will need other settings: {error}.")
        return None
    return request if config.train.sample_every else None


class _Stderr:
    """Standard error. What cannot be written is lost: Ctrl-C ends `2>&1 | tee log` too."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()


def _progress_bar(first_step: int, steps: int) -> tqdm:
    return tqdm(
        file=_Stderr(),
        total=steps,
        initial=first_step,
        unit="step",
        dynamic_ncols=True,
        smoothing=0.05,
        # In a log file, a line now and then.
        mininterval=0.5 if sys.stderr.isatty() else 30,
        postfix="compiling",
        disable=not hosts.is_lead(),
    )


def _postfix(scalars: dict[str, float]) -> str:
    parts = [f"loss {scalars['loss']:.4f}"]
    if not math.isnan(scalars["images_per_second"]):
        parts.append(f"{scalars['images_per_second']:.0f} img/s")
    busiest = [v for name, v in scalars.items() if name.startswith("moe/busiest")]
    if busiest:
        parts.append(f"busiest expert {max(busiest):.0%}")
    return ", ".join(parts)
