"""The training loop: batches in, checkpoints, metrics and sample grids out."""

import collections
import contextlib
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh
from tqdm import tqdm

from dit_moe import images, sampling
from dit_moe.autoencoder.sources import is_local
from dit_moe.config import Config, ConfigError
from dit_moe.config_io import differences, load_json, to_json
from dit_moe.data.latents import LatentSpace, write_latent_space
from dit_moe.data.pipeline import device_batches
from dit_moe.data.sources import build_sources
from dit_moe.files import atomic, lock
from dit_moe.rendering import build_renderer
from dit_moe.training.checkpoint import Checkpoints, TrainingError
from dit_moe.training.interrupt import Interrupt
from dit_moe.training.logging import MetricsWriter, summarize
from dit_moe.training.mesh import batch_sharding, build_mesh
from dit_moe.training.state import TrainState, abstract_state, build_optimizer, init_state
from dit_moe.training.step import Metrics, build_step

GRID_CLASSES, GRID_COLUMNS = 10, 8

# Fields (and what begins so) that do not change what is learned.
_FREE_ON_RESUME = (
    "name",
    "mesh.",
    "sample.",
    "data.path",
    "model.remat",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.max_skipped",
    "train.sample_every",
)


def train(config: Config, workdir: Path) -> int | None:
    """Trains to `config.train.steps`, from the newest checkpoint of the workdir if there is one.

    Returns:
      None when done, or the number of the signal that stopped it after a save.

    Raises:
      ConfigError: the config does not fit the data, the devices or the run in the workdir, or no
        checkpoint of the workdir can be read.
      TrainingError: the loss is no longer finite, or the first or last checkpoint could not be
        saved.
    """
    settings = config.train
    mesh = build_mesh(config.mesh)
    if settings.batch_size // settings.accumulation % mesh.size:
        raise ConfigError(
            f"config.train.batch_size is {settings.batch_size} with accumulation "
            f"{settings.accumulation} on {mesh.size} devices; allowed: a multiple of "
            f"{settings.accumulation * mesh.size}"
        )
    sources = build_sources(config)
    optimizer = build_optimizer(settings)

    busy = ConfigError(
        f"workdir {str(workdir)!r} is in use by another run; allowed: another --workdir"
    )
    with (
        lock(workdir / ".lock", busy),
        jax.set_mesh(mesh),
        Checkpoints(workdir, settings.keep_checkpoints) as checkpoints,
        Interrupt() as interrupt,
    ):
        resuming = checkpoints.latest_step() is not None
        _write_config(config, workdir, resuming=resuming)
        write_latent_space(workdir, sources[0].latent_space, resuming=resuming)
        like = abstract_state(config.model, optimizer, mesh)
        _describe(config, like, workdir, mesh)
        state = checkpoints.restore_newest(like)
        if state is None:
            state = init_state(config.model, optimizer, config.seed, mesh)
        else:
            print(f"Resuming {workdir} from step {int(state.step):,}.")
        first_step = int(state.step)
        step = jax.jit(build_step(config, optimizer), donate_argnums=0)
        every, grids = settings.sample_every, None
        if every:
            grids = _GridSampler(config, sources[0].latent_space, mesh)
        window = _Window(settings.batch_size)
        skips = _Skips(settings.max_skipped)
        with (
            MetricsWriter(workdir, first_step) as writer,
            tqdm(
                total=settings.steps,
                initial=first_step,
                unit="step",
                dynamic_ncols=True,
                smoothing=0.05,
                # In a log file, a line now and then.
                mininterval=0.5 if sys.stderr.isatty() else 30,
                postfix="compiling",
            ) as bar,
        ):
            stream = device_batches(config, sources, first_step, batch_sharding(mesh))
            for number in range(first_step + 1, settings.steps + 1):
                state, metrics = step(state, *next(stream))
                window.add(metrics)
                bar.update()
                last = number == settings.steps or interrupt.signal is not None

                save = number % settings.checkpoint_every == 0 or last
                # A row before every save too, which shows whether updates are being skipped.
                if number % settings.log_every == 0 or save:
                    checkpoints.poll()
                    scalars, reasons = window.close()
                    skips.report(number, reasons, checkpoints.latest_step())
                    with _reporting_failure("metrics"):
                        writer.write(number, scalars)
                    bar.set_postfix_str(_postfix(scalars))
                # A state whose own loss was not finite may be of no use: it replaces no checkpoint.
                if save and (last or not skips.in_a_row):
                    with window.paused():
                        checkpoints.save(state)
                if grids and (number % every == 0 or number == settings.steps):
                    with window.paused(), _reporting_failure("samples"):
                        grids.draw(state, workdir / "samples" / f"step_{number:08d}.png")
                if last:
                    break
        checkpoints.wait()
        if checkpoints.latest_step() != int(state.step):
            raise TrainingError(
                f"the last state, of step {int(state.step):,}, could not be saved; the newest "
                f"checkpoint is {_step_or_none(checkpoints.latest_step())}"
            )
    return interrupt.signal


class _Window:
    """The metrics since the last log line, and how fast they came."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._steps: list[Metrics] = []
        self._timed_steps = 0
        self._start: float | None = None  # None until the first step has been compiled

    def add(self, metrics: Metrics) -> None:
        """Takes the metrics of a step that may still be running."""
        self._steps.append(metrics)
        if self._start is None:
            metrics["loss"].block_until_ready()
            self._start = time.perf_counter()
            return
        self._timed_steps += 1
        if len(self._steps) > 2:
            # Bounds the queue of dispatched steps without waiting for the newest.
            self._steps[-3]["loss"].block_until_ready()

    def close(self) -> tuple[dict[str, float], list[str | None]]:
        """Waits for the steps and returns their metrics; a new window begins.

        Returns:
          The means over the steps whose update was not skipped (over all if all were), with the
          number of those skipped, and for every step the reason why it was skipped, or None.
        """
        assert self._start is not None
        steps = jax.device_get(self._steps)
        reasons = [_why_skipped(metrics) for metrics in steps]
        done = [m for m, reason in zip(steps, reasons, strict=True) if reason is None]
        scalars = summarize(done or steps)
        scalars["skipped"] = float(len(steps) - len(done))
        seconds = time.perf_counter() - self._start
        images = self._timed_steps * self._batch_size
        scalars["images_per_second"] = images / seconds if images else math.nan
        self._steps, self._timed_steps, self._start = [], 0, time.perf_counter()
        return scalars, reasons

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count."""
        begin = time.perf_counter()
        yield
        assert self._start is not None
        self._start += time.perf_counter() - begin


def _why_skipped(metrics: Metrics) -> str | None:
    if not metrics["skipped"]:
        return None
    name = "gradient_norm" if np.isfinite(metrics["loss"]) else "loss"
    return f"{name} is {float(metrics[name])}"


class _Skips:
    """Tells of skipped updates, and ends the training after too many in a row."""

    def __init__(self, limit: int):
        self._limit = limit
        self.in_a_row = 0
        """Updates skipped up to now, since the last that was not."""

    def report(self, number: int, reasons: list[str | None], newest: int | None) -> None:
        """Takes why each of the steps up to `number` was skipped (None: it was not).

        Raises:
          TrainingError: the limit is reached.
        """
        skipped: dict[str, list[str]] = collections.defaultdict(list)
        longest = 0
        for step, reason in enumerate(reasons, start=number - len(reasons) + 1):
            self.in_a_row = 0 if reason is None else self.in_a_row + 1
            longest = max(longest, self.in_a_row)
            if reason is not None:
                skipped[reason].append(f"{step:,}")
        for reason, steps in skipped.items():
            tqdm.write(f"update {', '.join(steps)} skipped: {reason}")
        if longest >= self._limit:
            raise TrainingError(
                f"{longest} updates in a row were skipped up to step {number:,}, because "
                f"{' and '.join(skipped)}; the last good checkpoint is {_step_or_none(newest)}: "
                f"try a smaller learning_rate or a gradient_clip"
            )


def _step_or_none(step: int | None) -> str:
    return "none" if step is None else f"step {step:,}"


@contextlib.contextmanager
def _reporting_failure(what: str) -> Iterator[None]:
    """A full disk costs no training, as long as the last checkpoint can be saved in the end."""
    try:
        yield
    except OSError as error:
        tqdm.write(f"{what} could not be written: {error}")


class _GridSampler:
    """Draws the same few images from the moving average each time.

    Latents are decoded if their autoencoder is at hand; otherwise three channels are drawn.
    """

    def __init__(self, config: Config, space: LatentSpace | None, mesh: Mesh):
        self.render = images.to_uint8
        if space is not None and is_local(space.autoencoder.source):
            self.render = build_renderer(space, None, mesh).render
        elif space is not None:
            print(
                f"Sample grids show latents: autoencoder {space.autoencoder.source!r} is not here."
            )
        self.sharding = batch_sharding(mesh)
        classes = min(config.model.num_classes, GRID_CLASSES)
        self.request = sampling.build_request(
            config,
            num_samples=classes * GRID_COLUMNS,
            classes=np.linspace(0, config.model.num_classes - 1, classes).astype(int).tolist(),
            seed=config.seed,
        )
        self.sampler = sampling.build_sampler(config, self.request)

    def draw(self, state: TrainState, path: Path) -> None:
        batch_size = sampling.round_up(self.request.num_samples, self.sharding.num_devices)
        (x_NxHxWxC,) = sampling.generate(
            self.sampler, state.ema, self.request, batch_size, sharding=self.sharding
        )
        with atomic(path) as temporary:
            images.grid(self.render(x_NxHxWxC), self.request.labels()).save(temporary)


def _write_config(config: Config, workdir: Path, *, resuming: bool) -> None:
    """Writes config.json; when resuming, only if it describes the same run as before."""
    path = workdir / "config.json"
    if resuming and path.exists():
        free = _FREE_ON_RESUME
        if config.train.schedule == "constant":
            free = (*free, "train.steps")  # more steps continue the same trajectory
        changed = [f for f in differences(load_json(path), config) if not f.startswith(free)]
        if changed:
            raise ConfigError(
                f"workdir {str(workdir)!r} holds a run with another config; it differs in "
                f"{', '.join(changed)}: use the same config or another --workdir"
            )
    with atomic(path) as temporary:
        temporary.write_text(to_json(config))


def _describe(config: Config, state: TrainState, workdir: Path, mesh: Mesh) -> None:
    with atomic(workdir / "parameters.txt") as temporary:
        overview = parameter_overview.get_parameter_overview(
            state.parameters,  # pyright: ignore[reportArgumentType]
            include_stats=False,
        )
        temporary.write_text(overview + "\n")
    total = sum(p.size for p in state.parameters.values())
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    print(
        f"{config.name}: {total:,} parameters (listed in {workdir / 'parameters.txt'}), "
        f"mesh {shape} on {jax.devices()[0].platform}."
    )


def _postfix(scalars: dict[str, float]) -> str:
    parts = [f"loss {scalars['loss']:.4f}"]
    if not math.isnan(scalars["images_per_second"]):
        parts.append(f"{scalars['images_per_second']:.0f} img/s")
    busiest = [v for name, v in scalars.items() if name.startswith("moe/busiest")]
    if busiest:
        parts.append(f"busiest expert {max(busiest):.0%}")
    return ", ".join(parts)
