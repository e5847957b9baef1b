"""The optimiser and its learning rate; here, since its state is part of a run's."""

import jax
import optax

from dit_moe.config import TrainConfig


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


def updates_done(optimizer: optax.OptState) -> jax.Array:
    """int32 scalar: behind the step by the updates that were skipped."""
    return optax.tree.get(optimizer, "ScaleByScheduleState").count
