"""TeaCache's polynomial of a run: from the change of what its first block sees to that of what the
network predicts."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic.dataclasses import dataclass

from dit_moe.caching.watched import relative_change
from dit_moe.config import Config, ConfigError
from dit_moe.config.caching import CacheSettings, TeaCacheConfig
from dit_moe.config.rules import RULES, NonNegativeInt, PositiveInt
from dit_moe.devices import hosts
from dit_moe.diffusion.integrate import build_objective, sample
from dit_moe.models.dit import DiT
from dit_moe.models.parameters import Parameters, functional
from dit_moe.models.prediction import Prediction
from dit_moe.models.stretch import first_input
from dit_moe.runs.loading import load_run, locate
from dit_moe.sampling.evaluations import rows_of_evaluations
from dit_moe.sampling.guides import guided
from dit_moe.sampling.request import Request, build_request
from dit_moe.sampling.sampler import MAX_BATCH, fitting, image_keys
from dit_moe.storage.records import read_record, write_record

CALIBRATION_FILE = "teacache.json"
DEGREE = 4


@dataclass(frozen=True, config=RULES)
class Calibration:
    """What `teacache.json` beside a run's config.json holds."""

    coefficients: tuple[float, ...]
    """Of the polynomial, highest power first."""
    explained: float
    """R squared: the share of the variance of the predictions' changes that it explains."""
    step: NonNegativeInt
    """Of the checkpoint."""
    ema: bool
    solver: str
    steps: PositiveInt
    guidance_scale: float
    images: PositiveInt
    seed: NonNegativeInt
    format: Literal[1] = 1


def calibrate(
    workdir: str | Path, *, ema: bool, checkpoint: str, images: int, **request: Any
) -> tuple[Path, Calibration]:
    """Draws some images, computing everything, and writes the polynomial into the run folder.

    Args:
      workdir: a run folder, an exported folder or a name on the Hugging Face hub.
      ema: its parameters' moving average rather than its parameters.
      checkpoint: of the run: "newest", "best" or a step.
      images: how many, all at once.
      request: as for `request.build_request`.

    Returns:
      The file and what it holds.

    Raises:
      ConfigError: the run or an argument cannot be used.
      OSError: the file cannot be written.
    """
    if not 1 <= images <= MAX_BATCH:
        raise ConfigError(f"images is {images}; allowed: 1 to {MAX_BATCH}")
    folder = locate(workdir)
    run = load_run(folder, ema, checkpoint=checkpoint)
    asked = build_request(run.config, num_samples=images, cache=TeaCacheConfig(), **request)
    if asked.guidance.guide != "cfg":
        raise ConfigError(f"guidance is {asked.guidance.guide!r}; allowed: 'cfg', as for teacache")
    with fitting(images):
        coefficients, explained = fit_changes(run.config, run.parameters, asked)
    found = Calibration(
        coefficients=coefficients,
        explained=explained,
        step=run.step,
        ema=ema,
        solver=asked.integration.solver,
        steps=asked.integration.steps,
        guidance_scale=asked.guidance.scale,
        images=images,
        seed=asked.seed,
    )
    write_record(folder / CALIBRATION_FILE, found)
    return folder / CALIBRATION_FILE, found


def fit_changes(
    config: Config, parameters: Parameters, request: Request
) -> tuple[tuple[float, ...], float]:
    """The polynomial of a request's images.

    Returns:
      Its coefficients, highest power first, and R squared.

    Raises:
      ConfigError: there are too few steps for it.
    """
    seen, predicted = changes(config, parameters, request)
    if len(seen) <= DEGREE + 1:
        raise ConfigError(
            f"steps is {request.integration.steps}, which gives {len(seen)} changes; allowed: more "
            f"than {DEGREE + 1}"
        )
    coefficients = np.polyfit(seen, predicted, DEGREE)
    rest = predicted - np.polyval(coefficients, seen)
    spread = max(predicted.var(), np.finfo(np.float64).tiny)
    return tuple(coefficients.tolist()), float(1 - rest.var() / spread)


def calibrated(cache: CacheSettings | None, folder: Path) -> CacheSettings | None:
    """The settings with the coefficients of the run's calibration, where they need some.

    Raises:
      ConfigError: the file is damaged.
    """
    path = folder / CALIBRATION_FILE
    if not isinstance(cache, TeaCacheConfig) or cache.coefficients or not path.is_file():
        return cache
    found = read_record(path, Calibration)
    hosts.say(
        f"{path} is of step {found.step:,} ({'average' if found.ema else 'raw'} parameters), "
        f"{found.solver} with {found.steps} steps and guidance scale {found.guidance_scale:g}."
    )
    return TeaCacheConfig(threshold=cache.threshold, coefficients=found.coefficients)


def changes(
    config: Config, parameters: Parameters, request: Request
) -> tuple[np.ndarray, np.ndarray]:
    """The relative changes of what the first block sees and of what the network predicts.

    Returns:
      [E'] float64 each, of the evaluations that have as many rows as the one before.
    """
    model, objective = config.model, build_objective(config.objective)
    rows_E, _ = rows_of_evaluations(model, config.objective, request)

    @jax.jit
    def draw(parameters: Parameters, key_N: jax.Array, y_N: jax.Array) -> jax.Array:
        shape = (len(y_N) * int(rows_E.max()), *model.image_shape)
        watching = _Watching(functional(model)(parameters), shape, len(rows_E))
        denoiser = guided(objective.denoiser(watching), None, model.null_label, request.guidance)
        integration = dataclasses.asdict(request.integration)
        sample(objective, denoiser, key_N, y_N, model.image_shape, **integration)
        return watching.changes[...]

    labels = request.labels()
    found = np.asarray(
        draw(parameters, image_keys(request.seed, np.arange(len(labels))), labels), np.float64
    )
    alike_E = np.append(False, rows_E[1:] == rows_E[:-1])
    return found[0, alike_E], found[1, alike_E]


class _Watching:
    """A network that notes by how much it changes from evaluation to evaluation.

    Args:
      model: the network.
      shape: [N, H, W, C] of the most images that an evaluation has.
      evaluations: how many there will be.
    """

    def __init__(self, model: DiT, shape: tuple[int, ...], evaluations: int):
        def like() -> tuple[jax.Array, jax.Array]:
            n = shape[0]
            tokens, given, grid = model.enter(jnp.zeros(shape), jnp.zeros(n), jnp.zeros(n, int))
            return first_input(model.trunk, tokens, given), model.leave(tokens, given, grid)

        self._model = model
        self._before = [jax.new_ref(jnp.zeros(a.shape, a.dtype)) for a in jax.eval_shape(like)]
        self._number = jax.new_ref(jnp.int32(0))
        self.changes = jax.new_ref(jnp.zeros((2, evaluations)))
        """[2, E] float32."""

    def __call__(self, x: jax.Array, t_N: jax.Array, y_N: jax.Array) -> Prediction:
        number, n = self._number[...], len(y_N)
        self._number[...] = number + 1
        tokens, given, _ = self._model.enter(x, t_N, y_N)
        prediction = self._model(x, t_N, y_N)
        now = first_input(self._model.trunk, tokens, given), prediction.value
        for row, (new, before) in enumerate(zip(now, self._before, strict=True)):
            self.changes[row, number] = relative_change(new, before[:n])
            before[:n] = new
        return prediction
