"""Which images to make, and how: what was asked for, filled from the run's config and checked."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dit_moe.config import (
    Config,
    ConfigError,
    GuidanceConfig,
    SolverConfig,
    require,
)
from dit_moe.config.caching import CacheSettings, parse_cache
from dit_moe.config.rules import check_seed
from dit_moe.sampling.guides import check_guidance

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
    cache: CacheSettings | None = None
    """What is not computed; None: everything is."""

    def description(self) -> dict[str, Any]:
        """All of it, ready for JSON. Where there is no cache, nothing tells of one."""
        fields = dataclasses.asdict(self)  # pyright: ignore[reportArgumentType]
        return fields if self.cache else {k: v for k, v in fields.items() if k != "cache"}

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
    cache: CacheSettings | str | None = None,
) -> Request:
    """Fills what is not given from the config.

    Args:
      config: of the run.
      num_samples: how many images.
      classes: in turn; none means all of them.
      integration: fields of `SolverConfig` that are not to be the config's; one that is None is.
      guidance: fields of `GuidanceConfig`, likewise.
      seed: of all images together.
      cache: what is not computed, as settings or as of `config.caching.parse_cache`.

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
    check_seed(seed)
    cache = parse_cache(cache) if isinstance(cache, str) else cache
    require(
        cache is None or solver.time_grid is not None or solver.solver == "ancestral",
        f"step_cache is {cache and cache.name!r} with solver {solver.solver!r}, whose steps depend "
        "on the images; allowed: with solvers that have a time_grid, and ancestral",
    )
    return Request(
        num_samples=num_samples,
        classes=tuple(classes) or tuple(range(num_classes)),
        integration=solver,
        guidance=checked,
        seed=seed,
        cache=cache,
    )
