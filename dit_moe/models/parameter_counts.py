"""How many parameters a network has, and how many of them a token meets."""

import functools
from dataclasses import dataclass

from dit_moe.config import ModelConfig
from dit_moe.models.parameters import abstract_parameters, places
from dit_moe.models.unpacking import whole_model

_ROUTED = "feed_forward.experts."
_GROUPS = "feed_forward.unlike."
"""Of experts of other kinds, among which the router chooses too."""


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters."""

    total: int
    """All of the network, as the state has them."""
    active: float
    """Those that compute a token: of a stack of experts the share that `computed_experts` tells, an
    average where experts choose tokens or some are cheap; all others count whole."""
    routed: int
    """Those of the experts among which a router chooses."""


@functools.cache
def parameter_counts(model: ModelConfig) -> ParameterCounts:
    """Counts them, without memory for them."""
    routed = {f"{p.prefix}{_ROUTED}": p.moe for p in places(model) if p.moe is not None}
    groups = tuple(f"{p.prefix}{_GROUPS}" for p in places(model) if p.moe is not None)
    total, chosen, active = 0, 0, 0.0
    for path, parameter in abstract_parameters(whole_model(model)).items():
        moe = next((moe for prefix, moe in routed.items() if path.startswith(prefix)), None)
        total += parameter.size
        chosen += parameter.size * (moe is not None or path.startswith(groups))
        active += parameter.size * (
            1.0 if moe is None else moe.computed_experts / moe.total_experts
        )
    return ParameterCounts(total, active, chosen)


def sparsity(model: ModelConfig) -> float:
    """1 - k / E: the share of the experts that does not compute a token, on average over the layers
    with mixtures; 0 where there are none."""
    shares = [1 - moe.computed_experts / moe.total_experts for moe in model.mixtures]
    return sum(shares) / len(shares) if shares else 0.0
