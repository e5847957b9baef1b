"""Where experts lie, as placement.json tells; docs/scale.md defines the numbers."""

from typing import Literal

from pydantic.dataclasses import dataclass

from dit_moe.analysis.record import Settings
from dit_moe.config.rules import RULES

FILE, ARRAYS = "placement.json", "placement.npz"
By = Literal["label", "position"]
"""By what tokens are grouped. `label`: whole images, which cost nothing to put elsewhere.
`position`: the tokens at each place and part of the time range, which travel before the router."""


@dataclass(frozen=True, config=RULES)
class Way:
    """What comes of one way to group tokens, on images that it was not made of."""

    by: By
    fitted: float
    """The local share on the images that it was made of."""
    local: float
    """The share of the assignments whose expert lies where the token does."""
    bytes: float
    """That travel for an image in one forward pass, there and back, over all layers."""
    busiest: float
    """The most assignments that a device computes, over the mean; the mean over layers."""
    together: float | None
    """Of the pairs of a token's experts in one MoE layer and the next, those on one device; None
    for a single layer."""


@dataclass(frozen=True, config=RULES)
class LayerPlacement:
    """One MoE layer."""

    block: int
    """Its place among the blocks of the network, from 0."""
    order: tuple[int, ...]
    """Which routed expert comes to each place."""
    local: float
    """The local share, on images that were held out."""


@dataclass(frozen=True, config=RULES)
class Placement:
    """All of it, in the folder of the model with its experts in this order."""

    name: str
    """The name in the run's config."""
    source: str
    """The run or folder, as it was given."""
    step: int
    settings: Settings
    devices: int
    """Along the mesh's axis "expert"."""
    before: Way
    """As the experts lay, images anywhere."""
    ways: tuple[Way, ...]
    by: By
    """Which of the ways the order is of."""
    layers: tuple[LayerPlacement, ...]
    format: Literal[1] = 1
