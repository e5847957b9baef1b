"""Everything that changes during training and is saved: a pytree."""

import functools
from typing import TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from dit_moe.config import ModelConfig, TrainConfig
from dit_moe.devices.host_memory import HOST_MEMORY
from dit_moe.devices.mesh import parameter_shardings, replicated
from dit_moe.models.frozen import split_learning
from dit_moe.models.low_rank import init_additions, merge_on_devices, shapes_and_axes
from dit_moe.models.parameters import Parameters, abstract_parameters, init_parameters
from dit_moe.runs.ema_tracks import Tracks, init_tracks
from dit_moe.runs.optimizer import build_optimizer

T = TypeVar("T")


@flax.struct.dataclass
class TrainState:
    """Parameters by dotted path, their moving average, the optimiser's state and the step.

    The random draws of a step and its batch follow from (seed, step): nothing else is needed to
    go on exactly.
    """

    step: jax.Array
    """int32 scalar: optimiser steps done."""
    parameters: Parameters
    """All of the network, and its additions of low rank (`train.lora`)."""
    ema: Parameters
    """Of all of them, or of those that learn (`TrainConfig.averages_what_learns`)."""
    optimizer: optax.OptState
    """Of the parameters that learn."""
    tracks: Tracks = flax.struct.field(default_factory=dict)
    """Further moving averages, by their relative width; see `training.ema_tracks`."""


def init_state(model: ModelConfig, train: TrainConfig, mesh: Mesh, seed: int) -> TrainState:
    """A fresh state, created in place on the mesh."""
    init = functools.partial(_init, model, train)
    shardings = state_shardings(model, train, mesh)
    return jax.jit(init, out_shardings=shardings)(jax.random.key(seed))


def start_state(
    model: ModelConfig, train: TrainConfig, mesh: Mesh, parameters: Parameters, seed: int
) -> TrainState:
    """The state of step 0 with these parameters of the network, which lie on the mesh and are
    donated; what is added to them, or lacks among them, follows from the seed."""
    build = functools.partial(_build, model, train)
    shardings = state_shardings(model, train, mesh)
    key = jax.random.key(seed)
    return jax.jit(build, out_shardings=shardings, donate_argnums=0)(parameters, key)


def network_average(state: TrainState, train: TrainConfig) -> Parameters:
    """The averaged parameters of the network, whose additions the state may hold apart."""
    if not train.averages_what_learns:
        return state.ema
    return merge_on_devices({**state.parameters, **state.ema}, train.lora)


def abstract_state(model: ModelConfig, train: TrainConfig, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, without memory for it."""
    return jax.tree.map(
        lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding),
        jax.eval_shape(functools.partial(_init, model, train), jax.random.key(0)),
        state_shardings(model, train, mesh),
    )


def _init(model: ModelConfig, train: TrainConfig, key: jax.Array) -> TrainState:
    return _build(model, train, init_parameters(model, key), key)


def _build(
    model: ModelConfig, train: TrainConfig, network: Parameters, key: jax.Array
) -> TrainState:
    if network.keys() != (all_of_it := abstract_parameters(model)).keys():
        fresh = init_parameters(model, key)
        network = {path: network.get(path, fresh[path]) for path in all_of_it}
    key = jax.random.fold_in(key, 1)  # the network has drawn from it
    parameters = {**network, **init_additions(model, train.lora, key)}
    learning, _ = split_learning(parameters, train)
    return TrainState(
        step=jnp.int32(0),
        parameters=parameters,
        # A copy, so that both can be donated.
        ema={path: jnp.copy(value) for path, value in _averaged(parameters, train).items()},
        optimizer=build_optimizer(train).init(learning),
        tracks=init_tracks(train.post_hoc_ema, parameters),
    )


def _averaged(parameters: dict[str, T], train: TrainConfig) -> dict[str, T]:
    """Those that an average is kept of."""
    return split_learning(parameters, train)[0] if train.averages_what_learns else parameters


def state_shardings(model: ModelConfig, train: TrainConfig, mesh: Mesh) -> TrainState:
    """The sharding of every leaf of the state, as a state of shardings.

    Averages and the optimiser's moments live where their parameters live, or in the memory of that
    device's host (`train.averages_on_host`, `train.moments_on_host`).
    """
    parameters, axes = shapes_and_axes(model, train.lora)
    by_path = parameter_shardings(mesh, parameters, axes)
    everywhere = replicated(mesh)
    optimizer = build_optimizer(train)
    moments = optax.tree_map_params(
        optimizer,
        lambda _, sharding: _on_host(sharding) if train.moments_on_host else sharding,
        jax.eval_shape(optimizer.init, split_learning(parameters, train)[0]),
        split_learning(by_path, train)[0],
        transform_non_params=lambda _: everywhere,
    )
    averages = _averaged(by_path, train)
    if train.averages_on_host:
        averages = {path: _on_host(sharding) for path, sharding in averages.items()}
    return TrainState(
        step=everywhere,  # pyright: ignore[reportArgumentType]
        parameters=by_path,  # pyright: ignore[reportArgumentType]
        ema=averages,  # pyright: ignore[reportArgumentType]
        optimizer=moments,
        tracks=dict.fromkeys(  # pyright: ignore[reportArgumentType]
            map(str, train.post_hoc_ema), averages
        ),
    )


def _on_host(sharding: NamedSharding) -> NamedSharding:
    return sharding.with_memory_kind(HOST_MEMORY)
