"""The optimiser's update of parameters and averages, wherever these lie."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import optax

from dit_moe.config import TrainConfig
from dit_moe.models.frozen import split_learning
from dit_moe.models.parameters import Parameters
from dit_moe.runs.ema_start import decay_of_step
from dit_moe.runs.ema_tracks import update_tracks
from dit_moe.runs.optimizer import build_optimizer
from dit_moe.runs.state import TrainState

T = TypeVar("T")
_DEVICE, _HOST = jax.memory.Space.Device, jax.memory.Space.Host


def build_update(config: TrainConfig) -> Callable[[TrainState, Parameters, Parameters], TrainState]:
    """The function from a state, its gradient and what the routers keep to the state after the
    update, with the step's number as it was; pure.

    What lies in the memory of the hosts comes and goes array by array, when XLA has room for it.
    Slices by layer would need less room, but would be computed in loops whose last bits are others.
    """
    optimizer = build_optimizer(config)

    def moments_to(space: Any, state: optax.OptState) -> optax.OptState:
        if not config.moments_on_host:
            return state
        return optax.tree_map_params(optimizer, lambda m: jax.device_put(m, space), state)

    def averages_to(space: Any, averages: T) -> T:
        return jax.device_put(averages, space) if config.averages_on_host else averages

    def update(state: TrainState, gradient: Parameters, router_state: Parameters) -> TrainState:
        learning, frozen = split_learning(state.parameters, config)
        moments = moments_to(_DEVICE, state.optimizer)
        updates, moments = optimizer.update(gradient, moments, learning)
        learning = cast(Parameters, optax.apply_updates(learning, updates))
        beside = {**router_state, **frozen}
        parameters = {**learning, **beside}
        number = state.step + 1
        decay = decay_of_step(config, number)
        ema, tracks = averages_to(_DEVICE, (state.ema, state.tracks))
        # Of all parameters, or of some.
        ema = {path: decay * e + (1 - decay) * parameters[path] for path, e in ema.items()}
        ema |= {path: p for path, p in beside.items() if path in ema}
        tracks = update_tracks(tracks, parameters, number)
        ema, tracks = averages_to(_HOST, (ema, tracks))
        return TrainState(state.step, parameters, ema, moments_to(_HOST, moments), tracks)

    return update
