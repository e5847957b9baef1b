"""All that a run is made of, built once; `training.loop` is what is done with it."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
from etils import epath
from jax.sharding import Mesh
from tqdm import tqdm

from dit_moe.config import Config, ConfigError, ModelConfig
from dit_moe.data.classes import count_classes, named_classes
from dit_moe.data.pipeline import Batch, device_batches
from dit_moe.data.sources import Source, build_sources
from dit_moe.devices import hosts
from dit_moe.devices.accelerators import find_device
from dit_moe.devices.host_memory import check_memory_kinds
from dit_moe.devices.mesh import (
    batch_sharding,
    build_mesh,
    check_mesh,
    replicated,
    with_neighbours,
)
from dit_moe.models.low_rank import is_addition
from dit_moe.models.parameters import Parameters
from dit_moe.models.unpacking import check_whole
from dit_moe.plan.estimate import Estimate, estimate
from dit_moe.plan.host import check_host_memory
from dit_moe.runs.checkpoints import Checkpoints
from dit_moe.runs.folder import write_parameter_overview, write_run
from dit_moe.runs.history import check_override
from dit_moe.runs.state import TrainState, abstract_state, init_state, start_state
from dit_moe.runs.teacher import check_teacher, taught_steps, teacher_model, write_teacher
from dit_moe.sampling.request import Request
from dit_moe.storage.files import lock
from dit_moe.training.distillation import StagedStep, find_teaching
from dit_moe.training.grids import grid_request
from dit_moe.training.health import Skips, Warnings
from dit_moe.training.interrupt import Interrupt
from dit_moe.training.judging import BuildJudge, Judging, open_judging
from dit_moe.training.logging import MetricsWriter
from dit_moe.training.milestones import Milestones
from dit_moe.training.origin import InitFrom, find_start, prepare_origin, start_parameters
from dit_moe.training.profile import Profile
from dit_moe.training.progress import progress_bar
from dit_moe.training.step import Metrics, build_step
from dit_moe.training.validation import Validation, heldout_sources
from dit_moe.training.window import Window

_Step = Callable[..., tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class Parts:
    """What follows from the config and the devices: no file of the run is read for it."""

    mesh: Mesh
    plan: Estimate
    sources: Sequence[Source]
    heldout: Sequence[Source]
    """None without validation."""
    request: Request | None
    """What grids show; None without grids."""
    teacher: ModelConfig | None
    """The network that the run learns from; None: from data alone."""


@dataclasses.dataclass
class Session:
    """A run that trains: its state, and everything that is used step by step."""

    config: Config
    workdir: epath.Path
    sources: Sequence[Source]
    first_step: int
    """How many steps were done before."""
    state: TrainState
    """After the last step that was done."""
    step: _Step
    stream: Iterator[Batch]
    """The batches of the steps to come."""
    checkpoints: Checkpoints
    milestones: Milestones
    validation: Validation | None
    judging: Judging | None
    window: Window
    skips: Skips
    warnings: Warnings
    profile: Profile
    writers: Sequence[MetricsWriter]
    """Those of the lead process; the others have none."""
    bar: tqdm
    interrupt: Interrupt
    agreement: hosts.Agreement

    def stopped_by(self) -> int:
        """The signal that asked any process to stop, or 0; all call it once a step."""
        return self.agreement(self.interrupt.signal or 0)


@contextlib.contextmanager
def open_session(
    config: Config,
    workdir: epath.Path,
    init_from: InitFrom | None = None,
    *,
    override_resume: tuple[str, ...] = (),
    profile_steps: range = range(0),
    wandb: str | None = None,
    build_judge: BuildJudge | None = None,
) -> Iterator[Session]:
    """Begins a run or goes on with it, and ends it in order; arguments and errors as of `train`."""
    check_override(override_resume)
    parts = build_parts(config)
    settings, mesh = config.train, parts.mesh
    # What the mesh decides is no part of the run: config.json has what was asked for.
    running = dataclasses.replace(config, model=with_neighbours(config.model, mesh))
    with contextlib.ExitStack() as held, jax.set_mesh(mesh), Interrupt() as interrupt:
        judging = open_judging(
            config, parts.sources, mesh, workdir, build_judge, lambda: interrupt.signal is not None
        )
        busy = ConfigError(
            f"workdir {str(workdir)!r} is in use by another run; allowed: another --workdir"
        )
        hosts.on_lead(lambda: held.enter_context(lock(workdir / ".lock", busy)))
        checkpoints = held.enter_context(
            Checkpoints(workdir, settings.keep_checkpoints, settings.keep_every)
        )
        like = abstract_state(config.model, settings, mesh)
        state, teaching = _begin(
            config, workdir, parts, checkpoints, like, init_from, override_resume
        )
        first_step, space = int(state.step), parts.sources[0].latent_space
        writers: list[MetricsWriter] = []
        hosts.on_lead(
            lambda: writers.append(held.enter_context(MetricsWriter(workdir, first_step, wandb)))
        )
        session = Session(
            config=config,
            workdir=workdir,
            sources=parts.sources,
            first_step=first_step,
            state=state,
            step=_compiled(running, like, parts, teaching, first_step),
            stream=device_batches(
                parts.sources,
                config.data,
                settings.batch_size,
                config.seed,
                first_step,
                batch_sharding(mesh),
            ),
            checkpoints=checkpoints,
            milestones=Milestones(config, parts.request, space, mesh, workdir),
            validation=Validation(running, parts.heldout, mesh) if parts.heldout else None,
            judging=judging,
            window=Window(settings.batch_size, parts.plan.flops_per_image, parts.plan.peak),
            skips=Skips(settings.max_skipped, hosts.say),
            warnings=Warnings([moe.num_experts for moe in config.model.mixtures], hosts.say),
            profile=Profile(profile_steps, workdir / "profile"),
            writers=writers,
            bar=held.enter_context(progress_bar(first_step, settings.steps)),
            interrupt=interrupt,
            agreement=hosts.Agreement(mesh),
        )
        del state, teaching  # which the first step takes over, and the last with a teacher lets go
        yield session


def build_parts(config: Config) -> Parts:
    """Checks the config against devices and data.

    Raises:
      ConfigError: it does not fit them.
    """
    check_whole(config.model, "config")
    if any(moe.columns is not None for moe in config.model.mixtures):
        raise ConfigError(
            "config.model has a mixture with columns for which other experts stand in, as "
            "compression leaves it, which is only sampled from; allowed: moe.columns none, as of "
            "a model whose experts were dropped with router=drop"
        )
    mesh = build_mesh(config.mesh)
    check_mesh(mesh, config.model)
    check_memory_kinds(config.train, mesh.local_devices)
    plan = estimate(config, mesh.shape, find_device(jax.devices()[0].device_kind))
    check_host_memory(plan)
    sources = build_sources(config.data, config.model)
    heldout = heldout_sources(config.data, config.model, config.train.validate_every, sources)
    request = grid_or_none(config, count_classes(sources).learnt())
    teacher = teacher_model(config)
    if teacher is not None:
        classes = named_classes(config.data, config.model, count_classes(sources).names)
        check_teacher(config, sources[0].latent_space, classes)
    return Parts(mesh, plan, sources, heldout, request, teacher)


def grid_or_none(config: Config, learnt: Sequence[int]) -> Request | None:
    """What grids show, or None without grids; without them too, what samples will lack is said."""
    try:
        request = grid_request(config, learnt)
    except ConfigError as error:
        if config.train.sample_every:
            raise
        hosts.say(f"Samples of this run will need other settings: {error}.")
        return None
    return request if config.train.sample_every else None


def _begin(
    config: Config,
    workdir: epath.Path,
    parts: Parts,
    checkpoints: Checkpoints,
    like: TrainState,
    init_from: InitFrom | None,
    override_resume: tuple[str, ...],
) -> tuple[TrainState, Parameters]:
    """Makes the folder the run's, and its state; beside it the parameters of its teacher, if steps
    to come have one."""
    newest = checkpoints.latest_step()
    resuming = newest is not None
    start = None
    if config.train.lora is not None and init_from is None and not resuming:
        raise ConfigError(
            "config.train.lora is given without init_from; allowed: both, as it learns additions "
            "to a model that there is"
        )
    if init_from is not None and not resuming:
        start = find_start(init_from, config, parts.sources)
    teacher, teaching = find_teaching(config, parts.teacher, parts.mesh, workdir, newest)

    def prepare_folder() -> None:
        write_run(
            config,
            parts.sources,
            workdir,
            resuming=resuming,
            override=override_resume,
            step=newest or 0,
        )
        prepare_origin(init_from, workdir, resuming=resuming)
        if not resuming:
            write_teacher(workdir, teacher)
        write_parameter_overview(like, workdir)

    hosts.on_lead(prepare_folder)
    count = sum(p.size for p in like.parameters.values())
    hosts.say(f"{count:,} parameters, listed in {workdir / 'parameters.txt'}.")
    hosts.say(f"{parts.plan.sentence()}.")
    state = checkpoints.restore_newest(like)
    if state is not None:
        hosts.say(f"Resuming {workdir} from step {int(state.step):,}.")
        if teacher is None:  # the newest checkpoint may have been damaged
            done = int(state.step)
            _, teaching = find_teaching(config, parts.teacher, parts.mesh, workdir, done)
    elif start is not None:
        network = {path: p for path, p in like.parameters.items() if not is_addition(path)}
        parameters = start_parameters(
            start,
            workdir,
            network,  # pyright: ignore[reportArgumentType]
            fingerprinted=config.train.lora is not None,
        )
        state = start_state(config.model, config.train, parts.mesh, parameters, config.seed)
    else:
        state = init_state(config.model, config.train, parts.mesh, config.seed)
    return state, teaching


def _compiled(
    config: Config, like: TrainState, parts: Parts, teaching: Parameters, first_step: int
) -> _Step:
    """The steps to come, each of which takes over the memory of the state that it is given."""
    shardings = jax.tree.map(lambda a: a.sharding, like), replicated(parts.mesh)

    def compiled(teacher: ModelConfig | None) -> _Step:
        step = build_step(config.model, config.objective, config.train, config.seed, teacher)
        return jax.jit(step, donate_argnums=0, out_shardings=shardings)

    plain = compiled(None)
    left = taught_steps(config.train) - first_step
    return StagedStep(compiled(parts.teacher), plain, teaching, left) if teaching else plain
