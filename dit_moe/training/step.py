"""One optimiser step, pure and jitted."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dit_moe.config import ModelConfig, ObjectiveConfig, TrainConfig
from dit_moe.diffusion.integrate import build_objective
from dit_moe.models.frozen import split_learning
from dit_moe.models.low_rank import functional_merged
from dit_moe.models.parameters import Parameters, functional, router_prefixes
from dit_moe.moe.routing import Routing
from dit_moe.moe.statistics import layer_statistics
from dit_moe.nn.embeddings import drop_labels, drop_labels_of_pairs
from dit_moe.runs.optimizer import build_schedule, updates_done
from dit_moe.runs.state import TrainState
from dit_moe.training.distillation import with_teacher
from dit_moe.training.given_pairs import beside_given, learning_rows
from dit_moe.training.update import build_update

Metrics = dict[str, Any]
"""Arrays by name; what is of MoE layers is a `moe.statistics.ByLayer`."""
SKIPPED, SKIPPED_FOR_DATA = 1, 2
Step = Callable[..., tuple[TrainState, Metrics]]
_Beside = tuple[Metrics, Parameters]
_Loss = Callable[
    [Parameters, Parameters, jax.Array, jax.Array, jax.Array], tuple[jax.Array, _Beside]
]
_NONE: Parameters = {}


def build_step(
    model: ModelConfig,
    objective: ObjectiveConfig,
    train: TrainConfig,
    seed: int,
    teacher: ModelConfig | None = None,
) -> Step:
    """The function from (state, x [N, H, W, C] float32, labels [N] int32) to (state, metrics).

    With the model of a teacher, its parameters are a fourth argument, and the loss has the part of
    `train.distill` too; without one, that is no matter.

    Every image draws its time, noise and label dropout from a key of its own, made from the seed,
    the step and its place in the batch: accumulation and the number of devices do not change
    them. With accumulation, the diffusion loss's gradient equals that of the whole batch; the
    auxiliary losses, which are not sums over tokens, are the mean over the parts.

    What routers keep beside the gradient (`Routing.next_state`) is taken over as it is, by the
    EMA too; with accumulation, the mean over the parts.

    Parameters that `train.freeze` names stay as they are, in the averages too; with `train.lora`
    all but the additions and what it names to learn, with `train.learn` all but that.

    When the loss or the norm of its gradient is not finite, everything but the step's number stays
    as it was, and the metric `skipped` is `SKIPPED`, or `SKIPPED_FOR_DATA` where x is not finite
    itself; otherwise it is 0.
    """
    gradients = _build_gradients(_build_loss(model, objective, train, teacher), train, model.rows)
    finish = build_finish(train)
    base_key = jax.random.key(seed)

    def step(
        state: TrainState, x_NxHxWxC: jax.Array, y_N: jax.Array, teaching: Parameters = _NONE
    ) -> tuple[TrainState, Metrics]:
        key_N = image_keys(jax.random.fold_in(base_key, state.step), len(y_N))
        gradient, beside = gradients(state.parameters, teaching, key_N, x_NxHxWxC, y_N)
        return finish(state, gradient, *beside, jnp.isfinite(x_NxHxWxC).all())

    return step


def build_finish(train: TrainConfig) -> Callable[..., tuple[TrainState, Metrics]]:
    """The end of a step: the function from (state, gradient, metrics, what routers keep, whether
    the data are finite) to (state, metrics); see `build_step`."""
    update, schedule = build_update(train), build_schedule(train)

    def finish(
        state: TrainState,
        gradient: Parameters,
        metrics: Metrics,
        router_state: Parameters,
        finite_data: jax.typing.ArrayLike,
    ) -> tuple[TrainState, Metrics]:
        metrics["gradient_norm"] = optax.tree.norm(gradient)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
        why = jnp.where(finite_data, SKIPPED, SKIPPED_FOR_DATA)
        metrics["skipped"] = jnp.where(finite, 0, why)
        metrics["learning_rate"] = jnp.asarray(schedule(updates_done(state.optimizer)))
        # Selecting leaf by leaf would need a second state in memory.
        new_state = jax.lax.cond(
            finite, update, lambda state, *_: state, state, gradient, router_state
        )
        return dataclasses.replace(new_state, step=state.step + 1), metrics

    return finish


def image_keys(key: jax.Array, number: int) -> jax.Array:
    """A key for each image of a batch, by its place alone."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(number))


def in_parts(parts: int, rows: int, *batch: jax.Array) -> list[jax.Array]:
    """Arrays [N, ...] as [parts, N / parts, ...], for a scan over the parts of a batch, in which so
    many rows stay together (`ModelConfig.rows`)."""

    # Part p takes images p, p + parts, ...: each device keeps its own images.
    def cut(a: jax.Array) -> jax.Array:
        together = a.reshape(-1, parts, rows, *a.shape[1:]).swapaxes(0, 1)
        return together.reshape(parts, -1, *a.shape[1:])

    return [cut(a) for a in batch]


def mean_of_parts(metrics: Metrics) -> Metrics:
    """Metrics with a leading axis of parts, as the mean over these."""

    def mean(name: str, value: Any) -> Any:
        # A part without an image in a time bin has no loss there.
        average = jnp.nanmean if name.startswith("loss_t") else jnp.mean
        return jax.tree.map(functools.partial(average, axis=0), value)

    return {name: mean(name, value) for name, value in metrics.items()}


def _build_loss(
    model: ModelConfig,
    objective: ObjectiveConfig,
    train: TrainConfig,
    teacher: ModelConfig | None,
) -> _Loss:
    """The loss of a batch, and beside it the metrics and what the routers keep."""
    bind, measure = functional_merged(model, train.lora), build_objective(objective).loss
    bind_teacher = None if teacher is None else functional(teacher)
    mixtures = [segment.moe for segment in model.trunk if segment.moe is not None]
    prefixes = router_prefixes(model)

    def loss(
        parameters: Parameters,
        teaching: Parameters,
        key_N: jax.Array,
        x_NxHxWxC: jax.Array,
        y_N: jax.Array,
    ) -> tuple[jax.Array, _Beside]:
        label_key_N, key_N = jax.vmap(jax.random.split, out_axes=1)(key_N)
        drop = drop_labels if model.pairs is None else drop_labels_of_pairs
        y_N = drop(label_key_N, y_N, model.label_dropout, model.null_label)
        network = functools.partial(bind(parameters), train=True)
        if bind_teacher is not None:
            assert train.distill is not None
            network = with_teacher(network, bind_teacher(teaching), train.distill.coefficient)
        if model.pairs is not None and model.pairs.given:
            learning = learning_rows(len(y_N), model.pairs.given)
            network = beside_given(network, x_NxHxWxC, y_N, learning)
            key_N, x_NxHxWxC, y_N = key_N[learning], x_NxHxWxC[learning], y_N[learning]
        value, (metrics, prediction) = measure(network, key_N, x_NxHxWxC, y_N)
        statistics = layer_statistics(prediction.routing, mixtures)
        metrics |= {f"moe/{name}": value for name, value in statistics.items()}
        return value, (metrics, router_state_of(prediction.deciders, prefixes))

    return loss


def _build_gradients(
    loss: _Loss, train: TrainConfig, rows: int
) -> Callable[..., tuple[Parameters, _Beside]]:
    """The gradient by what learns, with what is beside it, of a batch that is cut into parts."""
    parts = train.accumulation

    def gradients(
        parameters: Parameters, teaching: Parameters, *batch: jax.Array
    ) -> tuple[Parameters, _Beside]:
        learning, frozen = split_learning(parameters, train)
        compute = jax.grad(
            lambda learning, *part: loss({**learning, **frozen}, teaching, *part), has_aux=True
        )
        if parts == 1:
            return compute(learning, *batch)

        def add(total: Parameters, part: list[jax.Array]) -> tuple[Parameters, _Beside]:
            gradient, beside = compute(learning, *part)
            return jax.tree.map(jnp.add, total, gradient), beside

        zeros = jax.tree.map(jnp.zeros_like, learning)
        total, (metrics, router_state) = jax.lax.scan(add, zeros, in_parts(parts, rows, *batch))
        mean = jax.tree.map(lambda g: g / parts, total)
        router_state = {path: v.mean(axis=0) for path, v in router_state.items()}
        return mean, (mean_of_parts(metrics), router_state)

    return gradients


def router_state_of(routings: Sequence[Routing], prefixes: Sequence[str]) -> Parameters:
    """What the routers' parameters beside the gradient become, stacked over layers, by path.

    Args:
      routings: the records, stacked.
      prefixes: what the paths of each one's parameters begin with.
    """
    return {
        f"{prefix}{name}": value
        for routing, prefix in zip(routings, prefixes, strict=True)
        for name, value in routing.next_state.items()
    }
