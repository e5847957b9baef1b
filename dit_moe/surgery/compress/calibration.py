"""What a network is shown to see what its parts do: noised data at the times of sampling.

All steps of a chain share it. It holds clean data; what is shown follows from the seed alone, batch
by batch, so that it is the same for every model and however often it is asked for.
"""

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from dit_moe.config import Config, ConfigError, ObjectiveConfig
from dit_moe.config.rules import RULES, PositiveInt, Probability, Seed, describe
from dit_moe.data.sources import Source, source_of_run
from dit_moe.diffusion.integrate import build_objective


@dataclass(frozen=True, config=RULES)
class CalibrationSettings:
    """How much is shown, and what."""

    images: PositiveInt = 64
    """Shown at each time, the same ones."""
    times: Annotated[PositiveInt, Field(le=1000)] = 25
    """How many, spread as the steps of sampling are; an expert of a part of the time range would
    have no data if that were left out."""
    null_share: Probability = 0.5
    """The share of the images, at each time, that have the null label."""
    batch_size: PositiveInt = 64
    """Images at once."""
    seed: Seed = 0
    data: tuple[str, ...] = ()
    """Folders of a prepared set in place of the data that the run learnt from."""


class Inputs(NamedTuple):
    """A batch for the network, all of one time."""

    x: jax.Array
    """[N, H, W, C] float32, noisy."""
    t: jax.Array
    """[N] float32, in the network's own unit."""
    y: jax.Array
    """[N] int32 labels; some are the null label."""
    clean: jax.Array
    """[N, H, W, C] float32: what was noised."""
    noise: jax.Array
    """[N, H, W, C] float32: the noise in it."""
    time: int
    """Number of the time, from noise to data."""
    place: float
    """Where in the range of training times it lies, 0 next to the data."""


class Calibration:
    """Clean data and how they are shown.

    Args:
      objective: of the run, whose noise it is.
      x_NxHxWxC: float32, the clean images.
      label_N: int32 labels.
      null_label: that of the model.
      settings: of which `images` must be N.
      folder: where sums over it are kept; None: nowhere.
    """

    def __init__(
        self,
        objective: ObjectiveConfig,
        x_NxHxWxC: np.ndarray,
        label_N: np.ndarray,
        null_label: int,
        settings: CalibrationSettings,
        folder: Path | None = None,
    ):
        self.settings, self.folder = settings, folder
        self.objective = build_objective(objective)
        self._clean, self._label_N, self._null = x_NxHxWxC, label_N.astype(np.int32), null_label
        places = self.objective.places(settings.times)
        self.places: tuple[float, ...] = tuple(float(place) for place in places)
        """Where each time lies, from noise to data."""
        shown = x_NxHxWxC, self._label_N, null_label
        self.digest = _digest(objective, self.places, *shown, settings)
        """The same for the same inputs, in the same order."""

    def batches(self, *times: int) -> Iterator[Inputs]:
        """The inputs of these times, one after another, or of all."""
        settings = self.settings
        nulls = round(settings.null_share * settings.images)
        for time in times or range(len(self.places)):
            place = self.places[time]
            # Other images without their class at every time.
            order = (np.arange(settings.images) + time * nulls) % settings.images
            y_N = np.where(order < nulls, self._null, self._label_N)
            for first in range(0, settings.images, settings.batch_size):
                rows = np.arange(first, min(first + settings.batch_size, settings.images))
                clean, number_N = jnp.asarray(self._clean[rows]), time * settings.images + rows
                noise = _noise(settings.seed, jnp.asarray(number_N), clean.shape[1:])
                place_N = jnp.full(len(rows), place, jnp.float32)
                x, t_N = self.objective.noised(clean, place_N, noise)
                yield Inputs(x, t_N, jnp.asarray(y_N[rows]), clean, noise, time, place)


def calibration_settings(config: Config, **given: object) -> CalibrationSettings:
    """Settings with what is given and not None; of the null label, half of the images where the run
    samples with guidance by it, else the share that training has.

    Raises:
      ConfigError: naming the field, its value and what is allowed.
    """
    guided = config.sample.guidance.scale != 1
    usual = {"null_share": 0.5 if guided else config.model.label_dropout}
    chosen = {name: value for name, value in given.items() if value is not None}
    try:
        return pydantic.TypeAdapter(CalibrationSettings).validate_python(usual | chosen)
    except pydantic.ValidationError as error:
        raise ConfigError(describe(error, "calibration")) from None


def calibrate(config: Config, settings: CalibrationSettings, folder: Path) -> Calibration:
    """The calibration of a run, of examples that are drawn from its data.

    Args:
      config: of the run.
      settings: how much, and of which data.
      folder: where sums over it are kept, made as the first of them is.

    Raises:
      ConfigError: the data are not there or do not fit the model.
    """
    try:
        source = source_of_run(config.data, config.model, settings.data)
    except (ConfigError, OSError) as error:
        raise ConfigError(
            f"{error} (--data FOLDER says where data for calibration are: a prepared set)"
        ) from error
    x_NxHxWxC, label_N = _draw(source, settings, flip=config.data.flip)
    return Calibration(
        config.objective, x_NxHxWxC, label_N, config.model.null_label, settings, folder
    )


def _draw(
    source: Source, settings: CalibrationSettings, *, flip: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Examples of records that are drawn at random, none twice before all have been."""
    rng = np.random.default_rng([settings.seed, 0])
    rounds = math.ceil(settings.images / len(source))
    order = np.concatenate([rng.permutation(len(source)) for _ in range(rounds)])
    rows = order[: settings.images]
    drawn = [source.draw(source[int(row)], bool(flip and rng.random() < 0.5), rng) for row in rows]
    return np.stack(drawn).astype(np.float32), source.label[rows]


def _digest(
    objective: ObjectiveConfig,
    places: Sequence[float],
    x_NxHxWxC: np.ndarray,
    label_N: np.ndarray,
    null_label: int,
    settings: CalibrationSettings,
) -> str:
    """SHA-256 of what is shown, wherever the data lie."""
    shown: Sequence[object] = (
        objective.meaning,
        places,
        null_label,
        settings.null_share,
        settings.batch_size,
        settings.seed,
    )
    found = hashlib.sha256(json.dumps(shown, sort_keys=True, default=str).encode())
    found.update(np.ascontiguousarray(x_NxHxWxC).tobytes())
    found.update(label_N.tobytes())
    return found.hexdigest()


@functools.partial(jax.jit, static_argnums=(0, 2))
def _noise(seed: int, number_N: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal [N, *shape] float32 of the inputs with these numbers."""
    key = jax.random.key(seed)
    key_N = jax.vmap(lambda i: jax.random.fold_in(key, i))(number_N)
    return jax.vmap(lambda key: jax.random.normal(key, shape))(key_N)
