"""Samples of the averaged parameters, judged now and then: neither state nor batches know of it."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from dit_moe.autoencoder.latent_space import LatentSpace
from dit_moe.config import Config, ConfigError, EvaluateConfig
from dit_moe.config.rules import listing
from dit_moe.data.classes import ModelClasses, count_classes, named_classes
from dit_moe.data.sources import Source
from dit_moe.devices import hosts
from dit_moe.devices.mesh import batch_sharding
from dit_moe.models.parameters import Parameters
from dit_moe.runs.fingerprint import fingerprints
from dit_moe.runs.judged import Judgement, read_judgements, write_judgement
from dit_moe.runs.state import TrainState
from dit_moe.sampling import sampler as sampling
from dit_moe.sampling.rendering import Renderer, build_renderer, picture_shape
from dit_moe.sampling.request import Request, build_request
from dit_moe.storage.colours import MODES
from dit_moe.storage.images import NotFiniteError
from dit_moe.training.grids import average_on_devices

PREFIX = "judged/"


class _Stopped(KeyboardInterrupt):
    """The run is asked to stop: what judges keeps what it did, as after Ctrl-C."""


@dataclasses.dataclass(frozen=True)
class StateSamples:
    """Samples of one state, drawn as they are read; image i is the same whenever it is read."""

    name: str
    """For messages."""
    request: Request
    classes: ModelClasses
    batch_size: int
    image_shape: tuple[int, int, int]
    """[H, W, C] of the pictures."""
    identity: dict[str, Any]
    """What the images depend on, ready for JSON."""
    draw: Callable[[int], Iterator[np.ndarray]]

    def batches(self, start: int = 0) -> Iterator[np.ndarray]:
        """Yields images from number `start` on: uint8 [n, H, W, C], n as of `RunSampler`."""
        return self.draw(start)


class Judge(Protocol):
    """What judges samples; `config.train.evaluate` says by what."""

    @property
    def highest(self) -> bool:
        """Whether the highest of the first values is the best, or the lowest."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """All that the values depend on beside the samples, ready for JSON."""
        ...

    def check(self, samples: StateSamples) -> None:
        """Raises a `ConfigError` unless such samples can be judged."""
        ...

    def __call__(self, samples: StateSamples) -> dict[str, float]:
        """The values by name, finite; raises ConfigError or OSError."""
        ...


BuildJudge = Callable[[EvaluateConfig], Judge]


class Judging:
    """Judges samples at the multiples of `train.evaluate.every` and at the end.

    They are those that `eval.fid` draws from the checkpoint of that step by the run's own settings.

    Args:
      config: of the run, with `train.evaluate.every` above 0.
      sources: what is trained on.
      mesh: of its devices.
      workdir: the run folder, which keeps the judgements.
      build: makes the judge.
      stopped: whether the run is asked to stop, which ends a judgement.

    Raises:
      ConfigError: naming the field of `config.train.evaluate` that does not go with the run.
    """

    def __init__(
        self,
        config: Config,
        sources: Sequence[Source],
        mesh: Mesh,
        workdir: epath.Path,
        build: BuildJudge,
        stopped: Callable[[], bool],
    ):
        self._config, self._settings = config, config.train.evaluate
        self._mesh, self._workdir, self._stopped = mesh, workdir, stopped
        classes = count_classes(sources)
        self._classes = named_classes(config.data, config.model, classes.names)
        try:
            self._request = build_request(
                config, num_samples=self._settings.num_samples, classes=classes.learnt()
            )
            self._renderer = _renderer(config, sources[0].latent_space, mesh)
            self._sampler = sampling.build_sampler(config, self._request)
            self._judge = build(self._settings)
            self._judge.check(self._samples(0, {}))
        except ConfigError as error:
            raise ConfigError(f"config.train.evaluate cannot be done: {error}") from None
        drawn = {**self._request.description(), "latents": self._renderer.description}
        # As it is read from a file.
        self._judged_by = json.loads(json.dumps({"samples": drawn, **self._judge.identity}))

    def due(self, number: int) -> bool:
        """Whether to judge after step `number`."""
        every = self._settings.every
        return number > 0 and (number % every == 0 or number == self._config.train.steps)

    def missing(self, number: int) -> bool:
        """Whether it is due, but was not done: the run was stopped, or killed, meanwhile."""
        by_now = read_judgements(self._workdir)
        return self.due(number) and not any(
            known.step == number and known.judged_by == self._judged_by for known in by_now
        )

    def judge(self, number: int, state: TrainState) -> Judgement | None:
        """Judges the state after step `number`; None, and a line that says why, if it cannot."""
        samples = self._samples(number, average_on_devices(state, self._config.train))
        try:
            values = self._judge(samples)
        except _Stopped:
            hosts.say(f"Step {number:,} is not judged yet; the same command does it first.")
            return None
        except (ConfigError, OSError, NotFiniteError) as error:
            hosts.say(f"Step {number:,} could not be judged: {error}")
            return None
        columns = {f"{PREFIX}{name}": value for name, value in values.items()}
        return Judgement(number, columns, self._judge.highest, self._judged_by)

    def keep(self, judgement: Judgement) -> None:
        """Writes it down in the run folder."""
        with hosts.surviving("judgement"):
            write_judgement(self._workdir, judgement)

    def _samples(self, number: int, average: Parameters) -> StateSamples:
        mesh, request = self._mesh, self._request
        sharding = batch_sharding(mesh)
        batch_size = sampling.round_up(
            min(self._settings.batch_size, request.num_samples), mesh.size
        )

        def draw(start: int) -> Iterator[np.ndarray]:
            drawn = sampling.generate(
                self._sampler, average, request, batch_size, start=start, sharding=sharding
            )
            while True:
                if self._stopped():
                    raise _Stopped
                # The mesh belongs to a thread, and whoever reads may be another.
                with jax.set_mesh(mesh):
                    x_NxHxWxC = next(drawn, None)
                if x_NxHxWxC is None:
                    return
                yield self._renderer.render(x_NxHxWxC)

        return StateSamples(
            name=f"samples of {self._workdir} at step {number:,}",
            request=request,
            classes=self._classes,
            batch_size=batch_size,
            image_shape=picture_shape(self._config.model, self._renderer),
            identity={**request.description(), "weights": fingerprints(average)},
            draw=draw,
        )


def open_judging(
    config: Config,
    sources: Sequence[Source],
    mesh: Mesh,
    workdir: epath.Path,
    build: BuildJudge | None,
    stopped: Callable[[], bool],
) -> Judging | None:
    """What judges the run, or None where its config asks for no judgements; arguments and errors
    as of `Judging`."""
    every = config.train.evaluate.every
    if not every:
        return None
    if build is None:
        raise ConfigError(
            f"config.train.evaluate.every is {every}, but nothing judges; allowed: 0, or "
            "build_judge handed to train, as train.py does"
        )
    if jax.process_count() > 1:
        raise ConfigError(
            f"config.train.evaluate.every is {every}, but {jax.process_count()} processes train; "
            "allowed: 0, and `python -m eval.fid --follow` beside the run, or one process"
        )
    return Judging(config, sources, mesh, workdir, build, stopped)


def _renderer(config: Config, space: LatentSpace | None, mesh: Mesh) -> Renderer:
    if space is None and config.model.channels not in MODES:
        raise ConfigError(
            f"the run draws {config.model.channels} channels, which are no pictures; allowed: "
            f"{listing([*MODES])}, or latents whose autoencoder is known"
        )
    return build_renderer(space, None, mesh)
