"""Which images to make, and how: what was asked for, filled from the run's config and checked."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.config import (
    Config,
    ConfigError,
    GuidanceConfig,
    ModelConfig,
    ObjectiveConfig,
    SolverConfig,
)
from dit_moe.diffusion.integrate import build_objective, sample
from dit_moe.models.prediction import Prediction
from dit_moe.sampling.guides import check_guidance, guided

MAX_SAMPLES = 10**8
"""Labels of all are in memory, and an image's number must fit into 32 bits of its key."""


@dataclasses.dataclass(frozen=True)
class Request:
    """Which images to make, and how. The same request gives the same images."""

    num_samples: int
    classes: tuple[int, ...]
    """Image i has class classes[i % len(classes)]."""
    integration: SolverConfig
    """Resolved: solver, steps and options."""
    guidance: GuidanceConfig
    seed: int

    def labels(self) -> np.ndarray:
        """The int32 label of every image."""
        return np.resize(np.asarray(self.classes, np.int32), self.num_samples)


def build_request(
    config: Config,
    *,
    num_samples: int,
    classes: Sequence[int] = (),
    integration: Mapping[str, Any] | None = None,
    guidance: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Request:
    """Fills what is not given from the config.

    Args:
      config: of the run.
      num_samples: how many images.
      classes: in turn; none means all of them.
      integration: fields of `SolverConfig` that are not to be the config's; one that is None is.
      guidance: fields of `GuidanceConfig`, likewise.
      seed: of all images together.

    Raises:
      ConfigError: naming the value that cannot be used.
    """
    solver = config.sample.updated(config.objective, **integration or {})
    num_classes = config.model.num_classes
    wrong = [c for c in classes if not 0 <= c < num_classes]
    if wrong:
        raise ConfigError(f"classes has {wrong[0]}; allowed: 0 to {num_classes - 1}")
    if not 1 <= num_samples <= MAX_SAMPLES:
        raise ConfigError(f"num_samples is {num_samples}; allowed: 1 to {MAX_SAMPLES}")
    checked = check_guidance(config.model, config.sample.guidance.updated(**guidance or {}))
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed is {seed}; allowed: 0 to {2**32 - 1}")
    return Request(
        num_samples=num_samples,
        classes=tuple(classes) or tuple(range(num_classes)),
        integration=solver,
        guidance=checked,
        seed=seed,
    )


def function_evaluations(
    model: ModelConfig, objective: ObjectiveConfig, request: Request
) -> int | None:
    """Passes through a network that an image takes, those that guide it included.

    They are counted, with a network that does nothing. None: they depend on the image (dopri5).
    """
    if request.integration.solver == "dopri5":
        return None
    passes = jax.new_ref(jnp.int32(0))

    def network(x: jax.Array, t_N: jax.Array, y_N: jax.Array) -> Prediction:
        passes[...] += len(y_N)
        value = jnp.zeros((*x.shape[:-1], model.out_channels))
        return Prediction(value, routing=(), losses={})

    built = build_objective(objective)
    denoiser = built.denoiser(network)
    weak = None if request.guidance.guide == "cfg" else denoiser
    denoiser = guided(denoiser, weak, model.null_label, request.guidance)
    integration = dataclasses.asdict(request.integration)
    key_N, y_N = jax.random.split(jax.random.key(0), 1), jnp.zeros(1, jnp.int32)
    shape = (model.channels,)
    jax.jit(lambda: sample(built, denoiser, key_N, y_N, shape, **integration))()
    return int(passes[...])
