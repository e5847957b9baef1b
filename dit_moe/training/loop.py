"""The training loop: batches in, checkpoints, metrics and sample grids out."""

import math
import sys
import time
from pathlib import Path

import jax
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh
from tqdm import tqdm

from dit_moe import images, sampling
from dit_moe.config import Config, ConfigError, differences, load_json, to_json
from dit_moe.data.pipeline import batches
from dit_moe.data.sources import build_source
from dit_moe.files import atomic
from dit_moe.training.checkpoint import Checkpoints
from dit_moe.training.interrupt import Interrupt
from dit_moe.training.logging import MetricsWriter, summarize
from dit_moe.training.mesh import batch_sharding, build_mesh
from dit_moe.training.state import TrainState, build_optimizer, init_state
from dit_moe.training.step import Metrics, build_step

GRID_CLASSES, GRID_COLUMNS = 10, 8

_FREE_ON_RESUME = {
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.sample_every",
}


class TrainingError(RuntimeError):
    """Training cannot go on; the message is one sentence for the user."""


def train(config: Config, workdir: Path) -> int | None:
    """Trains to `config.train.steps`, from the newest checkpoint of the workdir if there is one.

    Returns:
      None when done, or the number of the signal that stopped it after a save.

    Raises:
      ConfigError: the config does not fit the data, the devices or the run in the workdir.
      TrainingError: the loss is no longer finite.
    """
    mesh = build_mesh(config.mesh)
    if config.train.batch_size // config.train.accumulation % mesh.size:
        raise ConfigError(
            f"config.train.batch_size is {config.train.batch_size} with accumulation "
            f"{config.train.accumulation} on {mesh.size} devices; allowed: a multiple of "
            f"{config.train.accumulation * mesh.size}"
        )
    source = build_source(config)
    _claim_workdir(config, workdir)
    optimizer = build_optimizer(config.train)

    with (
        jax.set_mesh(mesh),
        Checkpoints(workdir, config.train.keep_checkpoints) as checkpoints,
        Interrupt() as interrupt,
    ):
        state = init_state(config.model, optimizer, config.seed, mesh)
        _describe(config, state, workdir, mesh)
        if (latest := checkpoints.latest_step()) is not None:
            state = checkpoints.restore(latest, state)
            print(f"Resuming {workdir} from step {latest:,}.")
        first_step = int(state.step)
        step = jax.jit(build_step(config, optimizer), donate_argnums=0)
        grids = _GridSampler(config, mesh)
        window: list[Metrics] = []
        window_start = time.perf_counter()
        print("Compiling the train step; the bar starts when it is done.")
        with (
            MetricsWriter(workdir, first_step) as writer,
            tqdm(
                total=config.train.steps,
                initial=first_step,
                unit="step",
                dynamic_ncols=True,
                smoothing=0.05,
                # In a log file, a line now and then.
                mininterval=0.5 if sys.stderr.isatty() else 30,
            ) as bar,
        ):
            stream = batches(config, source, first_step)
            for number in range(first_step + 1, config.train.steps + 1):
                batch = jax.device_put(tuple(next(stream)), batch_sharding(mesh))
                state, metrics = step(state, *batch)
                window.append(metrics)
                if len(window) > 2:
                    # Bounds the queue of dispatched steps without waiting for the newest.
                    window[-3]["loss"].block_until_ready()
                if number == first_step + 1:
                    metrics["loss"].block_until_ready()
                    bar.unpause()
                    window_start = time.perf_counter()
                bar.update()
                stopping = interrupt.signal is not None or number == config.train.steps

                if number % config.train.log_every == 0 or stopping:
                    scalars = summarize(window)
                    elapsed = time.perf_counter() - window_start
                    timed = len(window) - (number - len(window) == first_step)
                    if timed:
                        scalars["images_per_second"] = timed * config.train.batch_size / elapsed
                    if not math.isfinite(scalars["loss"]):
                        raise TrainingError(
                            f"the loss is {scalars['loss']} at step {number:,}; the last good "
                            f"checkpoint is step {checkpoints.latest_step()}: try a smaller "
                            "learning_rate or a gradient_clip"
                        )
                    writer.write(number, scalars)
                    bar.set_postfix_str(_postfix(scalars))
                    window = []
                if number % config.train.checkpoint_every == 0 or stopping:
                    checkpoints.save(state)
                every = config.train.sample_every
                if every and (number % every == 0 or number == config.train.steps):
                    path = workdir / "samples" / f"step_{number:08d}.png"
                    grids.draw(state, path)
                if not window:
                    window_start = time.perf_counter()
                if interrupt.signal is not None:
                    break
        checkpoints.save(state)
        checkpoints.wait()
    return interrupt.signal


class _GridSampler:
    """Draws the same few images from the moving average each time."""

    def __init__(self, config: Config, mesh: Mesh):
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
            images.grid(images.to_uint8(x_NxHxWxC), self.request.labels()).save(temporary)


def _claim_workdir(config: Config, workdir: Path) -> None:
    """Writes config.json, or checks that the one in the workdir describes the same run."""
    path = workdir / "config.json"
    if path.exists():
        earlier = load_json(path)
        free = set(_FREE_ON_RESUME)
        if config.train.schedule == "constant":
            free.add("train.steps")  # more steps continue the same trajectory
        changed = [field for field in differences(earlier, config) if field not in free]
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
    if "images_per_second" in scalars:
        parts.append(f"{scalars['images_per_second']:.0f} img/s")
    busiest = [v for name, v in scalars.items() if name.startswith("moe/busiest")]
    if busiest:
        parts.append(f"busiest expert {max(busiest):.0%}")
    return ", ".join(parts)
