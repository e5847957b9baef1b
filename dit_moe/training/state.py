"""Everything that changes during training and is saved: a pytree."""

import functools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from dit_moe.config import ModelConfig, TrainConfig
from dit_moe.nn.parameters import (
    Parameters,
    abstract_parameters,
    init_parameters,
    logical_axes,
)
from dit_moe.training.ema_tracks import Tracks, init_tracks
from dit_moe.training.mesh import parameter_shardings, replicated


@flax.struct.dataclass
class TrainState:
    """Parameters by dotted path, their moving average, the optimiser's state and the step.

    The random draws of a step and its batch follow from (seed, step): nothing else is needed to
    go on exactly.
    """

    step: jax.Array
    """int32 scalar: optimiser steps done."""
    parameters: Parameters
    ema: Parameters
    optimizer: optax.OptState
    tracks: Tracks = flax.struct.field(default_factory=dict)
    """Further moving averages, by their relative width; see `training.ema_tracks`."""


def build_schedule(config: TrainConfig) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then constant, cosine or linear."""
    rest = config.steps - config.warmup_steps
    match config.schedule:
        case "constant":
            main = optax.constant_schedule(config.learning_rate)
        case "cosine":
            main = optax.cosine_decay_schedule(config.learning_rate, rest)
        case "linear":
            main = optax.linear_schedule(config.learning_rate, 0.0, rest)
    warmup = optax.linear_schedule(0.0, config.learning_rate, max(config.warmup_steps, 1))
    return optax.join_schedules([warmup, main], [config.warmup_steps])


def build_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW, after clipping the global gradient norm where the config asks for it."""
    adamw = optax.adamw(
        build_schedule(config),
        b1=config.beta1,
        b2=config.beta2,
        weight_decay=config.weight_decay,
        mu_dtype=config.first_moment_dtype,
    )
    if config.gradient_clip is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.gradient_clip), adamw)


def init_state(
    model: ModelConfig,
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh,
    tracks: Sequence[float] = (),
) -> TrainState:
    """A fresh state, created in place on the mesh; `tracks` are the widths of further averages."""
    init = functools.partial(_init, model, optimizer, tracks)
    shardings = state_shardings(model, optimizer, mesh, tracks)
    return jax.jit(init, out_shardings=shardings)(jax.random.key(seed))


def start_state(
    parameters: Parameters,
    model: ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    tracks: Sequence[float] = (),
) -> TrainState:
    """The state of step 0 with these parameters, which lie on the mesh and are donated."""
    build = functools.partial(_build, optimizer, tracks)
    shardings = state_shardings(model, optimizer, mesh, tracks)
    return jax.jit(build, out_shardings=shardings, donate_argnums=0)(parameters)


def abstract_state(
    model: ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    tracks: Sequence[float] = (),
) -> TrainState:
    """Shapes, dtypes and shardings of the state, without memory for it."""
    init = functools.partial(_init, model, optimizer, tracks)
    return jax.tree.map(
        lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding),
        jax.eval_shape(init, jax.random.key(0)),
        state_shardings(model, optimizer, mesh, tracks),
    )


def _init(
    model: ModelConfig,
    optimizer: optax.GradientTransformation,
    tracks: Sequence[float],
    key: jax.Array,
) -> TrainState:
    return _build(optimizer, tracks, init_parameters(model, key))


def _build(
    optimizer: optax.GradientTransformation, tracks: Sequence[float], parameters: Parameters
) -> TrainState:
    return TrainState(
        step=jnp.int32(0),
        parameters=parameters,
        # A copy, so that both can be donated.
        ema={path: jnp.copy(value) for path, value in parameters.items()},
        optimizer=optimizer.init(parameters),
        tracks=init_tracks(tracks, parameters),
    )


def state_shardings(
    model: ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    tracks: Sequence[float] = (),
) -> TrainState:
    """The sharding of every leaf of the state, as a state of shardings.

    Averages and the optimiser's moments live where their parameters live.
    """
    parameters = abstract_parameters(model)
    by_path = parameter_shardings(mesh, parameters, logical_axes(model))
    everywhere = replicated(mesh)
    moments = optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, parameters),
        by_path,
        transform_non_params=lambda _: everywhere,
    )
    return TrainState(
        step=everywhere,  # pyright: ignore[reportArgumentType]
        parameters=by_path,  # pyright: ignore[reportArgumentType]
        ema=by_path,  # pyright: ignore[reportArgumentType]
        optimizer=moments,
        tracks=dict.fromkeys(map(str, tracks), by_path),  # pyright: ignore[reportArgumentType]
    )
