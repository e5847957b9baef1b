"""The training loop: batches in, checkpoints, metrics and sample grids out."""

import contextlib
import math
import sys
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath
from tqdm import tqdm

from dit_moe import hosts
from dit_moe.config import Config, ConfigError
from dit_moe.data.classes import Classes, count_classes, write_classes
from dit_moe.data.latents import write_latent_space
from dit_moe.data.pipeline import device_batches
from dit_moe.data.sources import build_sources
from dit_moe.files import lock
from dit_moe.images import NotFiniteError
from dit_moe.plan.devices import find_device
from dit_moe.plan.estimate import estimate
from dit_moe.sampling import Request
from dit_moe.training.checkpoint import Checkpoints, TrainingError
from dit_moe.training.ema_snapshots import drop_snapshots_after, save_snapshot
from dit_moe.training.grids import GridSampler, grid_request
from dit_moe.training.health import Skips, Warnings
from dit_moe.training.interrupt import Interrupt
from dit_moe.training.logging import MetricsWriter
from dit_moe.training.mesh import batch_sharding, build_mesh, check_mesh, replicated
from dit_moe.training.origin import check_origin, prepare_origin, start_parameters
from dit_moe.training.profile import Profile
from dit_moe.training.run_folder import write_config, write_data_digests, write_parameter_overview
from dit_moe.training.state import abstract_state, init_state, start_state
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
      TrainingError: the loss is no longer finite, or the first or last checkpoint could not be
        saved.
    """
    workdir = epath.Path(workdir)
    mesh = build_mesh(config.mesh)
    check_mesh(mesh, config.model)
    device = find_device(jax.devices()[0].device_kind)
    plan = estimate(config, mesh.shape, device)
    sources = build_sources(config)
    settings, classes = config.train, count_classes(sources)
    request = _grid_request(config, classes)

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

        def prepare_folder() -> None:
            write_config(config, workdir, resuming=resuming)
            write_latent_space(workdir, sources[0].latent_space, resuming=resuming)
            write_data_digests(sources, workdir, resuming=resuming)
            write_classes(workdir, classes)
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
        if state.tracks:
            drop_snapshots_after(workdir, first_step)
        step = jax.jit(
            build_step(config),
            donate_argnums=0,
            out_shardings=(jax.tree.map(lambda a: a.sharding, like), replicated(mesh)),
        )
        grids = None
        if request is not None:
            grids = GridSampler(config, request, sources[0].latent_space, mesh)
        window = Window(config, plan.flops_per_image, device, mesh.size)
        skips = Skips(settings.max_skipped, hosts.say)
        warnings = Warnings(config.model.moe.num_experts if config.model.moe else 0, hosts.say)
        profile = Profile(profile_steps, workdir / "profile")
        stop = hosts.Agreement(mesh)
        stopped_by = 0

        writer = None
        if hosts.is_lead():
            writer = held.enter_context(MetricsWriter(workdir, first_step, wandb))
        bar = held.enter_context(_progress_bar(first_step, settings.steps))
        stream = device_batches(config, sources, first_step, batch_sharding(mesh))
        for number in range(first_step + 1, settings.steps + 1):
            profile.before(number)
            state, metrics = step(state, *next(stream))
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
                if writer:
                    with _reporting_failure("metrics"):
                        writer.write(number, scalars)
                skips.report(number, reasons, checkpoints.latest_step())
                bar.set_postfix_str(_postfix(scalars))
            # A state whose own loss was not finite may be of no use: it replaces no checkpoint.
            if save and (last or not skips.in_a_row):
                with window.paused():
                    checkpoints.save(state)
            if state.tracks and (number % settings.post_hoc_ema_every == 0 or end):
                with window.paused():
                    save_snapshot(workdir, number, state.tracks)
            if grids and (number % settings.sample_every == 0 or end):
                with window.paused(), _reporting_failure("samples"):
                    grids.draw(state, workdir / "samples" / f"step_{number:08d}.png")
            if last:
                break
        checkpoints.wait()
        if checkpoints.latest_step() != int(state.step):
            newest = checkpoints.latest_step()
            raise TrainingError(
                f"the last state, of step {int(state.step):,}, could not be saved; the newest "
                f"checkpoint is {'none' if newest is None else f'step {newest:,}'}"
            )
    return stopped_by or None


def _grid_request(config: Config, classes: Classes) -> Request | None:
    """What grids show, or None without grids; without them too, what samples will lack is said."""
    try:
        request = grid_request(config, classes.learnt())
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


@contextlib.contextmanager
def _reporting_failure(what: str) -> Iterator[None]:
    """Neither a full disk, if the last checkpoint can be saved, nor a bad sample ends training."""
    try:
        yield
    except (OSError, NotFiniteError) as error:
        hosts.say(f"{what} could not be written: {error}")


def _postfix(scalars: dict[str, float]) -> str:
    parts = [f"loss {scalars['loss']:.4f}"]
    if not math.isnan(scalars["images_per_second"]):
        parts.append(f"{scalars['images_per_second']:.0f} img/s")
    busiest = [v for name, v in scalars.items() if name.startswith("moe/busiest")]
    if busiest:
        parts.append(f"busiest expert {max(busiest):.0%}")
    return ", ".join(parts)
