"""What the network that draws asks of a store of experts, as far as it is known beforehand."""

from typing import NamedTuple

import numpy as np

from dit_moe.config import Config
from dit_moe.moe.dispatch import resolve_backend
from dit_moe.sampling.caches import Caches
from dit_moe.sampling.evaluations import rows_of_evaluations
from dit_moe.sampling.request import Request
from dit_moe.streaming.layout import Store
from dit_moe.streaming.order import order_of
from dit_moe.streaming.ring import Block


class Asked(NamedTuple):
    """See `Ring` and `StreamingProgram`."""

    order: list[Block]
    each: str


def experts_asked(store: Store, config: Config, request: Request, caches: Caches | None) -> Asked:
    """The order of a batch, or of every evaluation where all are alike or their order is unknown.

    Args:
      store: of the experts.
      config: of the run.
      request: what is drawn.
      caches: as of `open_caches` for it.
    """
    model, schedule = config.model, caches and caches.own.method.schedule
    null_E = _with_null(config, request, caches)
    computed_ExU = np.ones((len(null_E), model.units), bool)
    if schedule is not None:
        computed_ExU = schedule.computed
    some_E = computed_ExU.any(axis=1)
    alike = len(np.unique(np.c_[computed_ExU, null_E][some_E], axis=0)) == 1
    # A network that guides itself asks too, at its own times.
    unknown = (caches is not None and schedule is None) or request.guidance.guide == "self_contrast"
    if alike or unknown:
        any_1xU = np.any(computed_ExU, axis=0, keepdims=True)
        one = order_of(store, model, any_1xU, np.any(null_E, keepdims=True))
        return Asked(one, "pass of the network")
    return Asked(order_of(store, model, computed_ExU, null_E), "batch")


def _with_null(config: Config, request: Request, caches: Caches | None) -> np.ndarray:
    """Whether images without a class are among those of each evaluation: [E] bool, or [1] for all
    together."""
    guidance, solver = request.guidance, request.integration.solver
    both = guidance.guide == "cfg" and guidance.scale != 1
    unconditional = any(moe.unconditional_expert for moe in config.model.mixtures)
    null_E = np.array([both])
    if caches is not None:
        null_E = caches.own.rows == 2
    elif both and unconditional and guidance.interval != (0, 1) and solver != "dopri5":
        null_E = rows_of_evaluations(config.model, config.objective, request)[0] == 2
    # Other back ends ask for all experts at once.
    return null_E | (resolve_backend("auto") != "blocked")
