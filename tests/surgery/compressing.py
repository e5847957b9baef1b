"""Tiny models in memory, what they answer, and what they are shown."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.config import MoEConfig
from dit_moe.models.parameters import abstract_parameters, functional, places
from dit_moe.surgery.compress.calibration import Calibration, CalibrationSettings
from dit_moe.surgery.compress.steps import Model
from tests.tiny import tiny

LAYER = "trunk.segments.0.blocks.{}.feed_forward."
T_N, Y_N = jnp.array([0.1, 0.5, 0.9]), jnp.array([3, 7, 10])


def model_of(moe: MoEConfig | None, seed: int = 0) -> Model:
    """A network of which no number is zero, and every expert has tokens."""
    config, rng = tiny(moe), np.random.default_rng(seed)
    shapes = {path: p.shape for path, p in abstract_parameters(config.model).items()}
    parameters = {
        path: rng.normal(0, 0.3, shape).astype(np.float32) for path, shape in shapes.items()
    }
    return Model(config, parameters, ema=True, step=0)


def changed(model: Model, name: str, change: Callable[[np.ndarray], None]) -> Model:
    """The model with this parameter of its mixtures changed, in place in a copy: [L, ...]."""
    parameters = {path: np.array(value) for path, value in model.parameters.items()}
    for prefix in {place.prefix for place in places(model.config.model) if place.moe}:
        if (path := f"{prefix}feed_forward.{name}") in parameters:
            change(parameters[path])
    return dataclasses.replace(model, parameters=parameters)


def answer(model: Model) -> np.ndarray:
    """What the network says of three images, the last without a class."""
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    build = functional(model.config.model)
    parameters = {path: jnp.asarray(value) for path, value in model.parameters.items()}
    return np.asarray(jax.jit(lambda p: build(p)(x, T_N, Y_N).value)(parameters))


def answers(calibration: Calibration, *models: Model) -> list[np.ndarray]:
    """What networks of one config say of all that is shown."""
    build = functional(models[0].config.model)
    look = jax.jit(lambda p, x, t, y: build(p)(x, t, y).value)
    batches = list(calibration.batches())
    return [
        np.concatenate([look(dict(m.parameters), i.x, i.t, i.y) for i in batches]) for m in models
    ]


def shown(model: Model, folder: Path | None = None, **settings: object) -> Calibration:
    """A calibration of 6 images at 3 times, half of them without a class."""
    given = {"images": 6, "times": 3, "null_share": 0.5, "batch_size": 6, **settings}
    x = np.random.default_rng(0).normal(size=(6, 8, 8, 1)).astype(np.float32)
    told = CalibrationSettings(**given)  # pyright: ignore[reportArgumentType]
    return Calibration(model.config.objective, x, np.arange(6), 10, told, folder)
