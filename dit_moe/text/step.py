"""One optimiser step on texts, pure."""

import jax

from dit_moe.models.frozen import split_learning
from dit_moe.models.parameters import Parameters
from dit_moe.moe.statistics import layer_statistics
from dit_moe.runs.optimizer import build_optimizer
from dit_moe.runs.state import TrainState
from dit_moe.text.config import TextConfig
from dit_moe.text.network import functional, init_parameters, router_prefix
from dit_moe.text.objective import next_noise, text_loss
from dit_moe.training.step import Metrics, Step, build_finish, router_state_of

_Beside = tuple[Metrics, Parameters]


def fresh_state(config: TextConfig, tokens: int) -> TrainState:
    """The state of step 0, of a network of so many tokens."""
    parameters = init_parameters(config, tokens, jax.random.key(config.seed))
    learning, _ = split_learning(parameters, config.train)
    return TrainState(
        step=jax.numpy.int32(0),
        parameters=parameters,
        ema=jax.tree.map(jax.numpy.copy, parameters),  # so that both can be donated
        optimizer=build_optimizer(config.train).init(learning),
    )


def build_step(config: TextConfig, tokens: int) -> Step:
    """The function from (state, sources [N, S], targets [N, S']) to (state, metrics).

    As `training.step.build_step`: what routers and the noise keep beside the gradient is taken over
    as it is, and a step whose loss or gradient is not finite changes nothing but its number.
    """
    train, bind, finish = config.train, functional(config, tokens), build_finish(config.train)
    base_key = jax.random.key(config.seed)

    def loss(
        learning: Parameters,
        frozen: Parameters,
        step: jax.Array,
        source_NxS: jax.Array,
        target_NxS: jax.Array,
    ) -> tuple[jax.Array, _Beside]:
        network, key = bind({**learning, **frozen}), jax.random.fold_in(base_key, step)
        value, measured = text_loss(network, key, source_NxS, target_NxS, train=True)
        kept = next_noise(network, measured.error, step + 1)
        metrics = measured.metrics
        for side, routing in measured.prediction.routing.items():
            assert config.model.moe is not None
            kept |= router_state_of([routing], [router_prefix(config, side)])
            statistics = layer_statistics([routing], [config.model.moe])
            metrics |= {f"moe/{side}/{name}": by_layer for name, by_layer in statistics.items()}
        return value, (metrics, kept)

    def step(
        state: TrainState, source_NxS: jax.Array, target_NxS: jax.Array
    ) -> tuple[TrainState, Metrics]:
        learning, frozen = split_learning(state.parameters, train)
        gradient, beside = jax.grad(loss, has_aux=True)(
            learning, frozen, state.step, source_NxS, target_NxS
        )
        return finish(state, gradient, *beside, True)

    return step
