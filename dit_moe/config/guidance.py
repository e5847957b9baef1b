"""Guidance: what pushes a sample, how far, when and in which channels (docs/sampling.md)."""

import dataclasses
from typing import Annotated, Any

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from dit_moe.config.moe import rank_of
from dit_moe.config.rules import RULES, ConfigError, Listed, Probability, describe, require

GUIDES = ("cfg", "auto", "self_contrast")
"""`cfg`: the network without a class. `auto`: a worse network. `self_contrast`: the network with
its tokens at other experts."""

GUIDES_OF_RUNS = ("cfg", "self_contrast")
"""Those that need no other network."""

GUIDANCE_SCHEDULES = ("constant", "linear", "cosine")
GUIDANCE_CHANNELS = ("all", "first_three")

WEAK_ROUTINGS = ("least_likely", "random", "top_1")
"""What `self_contrast` routes by, beside `rank_R`, the expert of place R by score alone: the
experts with the lowest scores, one by lot, or the best one alone with its own weight."""

MAX_SCALE = 1000
"""Beyond, nothing is left of a picture, and numbers overflow."""

# Ours tell what is allowed, of NaN and infinity too.
_Number = Annotated[float, Field(allow_inf_nan=True)]


@dataclass(frozen=True, config=RULES)
class GuidanceConfig:
    """How samples are guided.

    What a model or its training does not allow, `sampling/guides.py` tells.
    """

    guide: str = "cfg"
    """One of `GUIDES`: from what samples are pushed away."""
    scale: _Number = 1.0
    """1 is the network itself, no guidance; 0 the guide; more than 1 goes away from it."""
    schedule: str = "constant"
    """How scale - 1 changes from noise to data: `linear` and `cosine` grow from 0 to double."""
    interval: Listed[Probability] = (0.0, 1.0)
    """Guidance only at flow times from the first to the second, both included: 0 is data, 1 is
    noise (Kynkäänniemi et al. 2024). Their noise level is sigma = t / (1 - t)."""
    rescale: _Number = 0.0
    """phi of Lin et al. 2023, eq. 15 and 16, how far the contrast that guidance adds is taken
    back: 0 not at all, 1 gives the guided prediction the strong one's standard deviation."""
    channels: str = "all"
    """One of `GUIDANCE_CHANNELS`; `first_three` is the habit of DiT's published samples."""
    weak_routing: str | None = None
    """One of `WEAK_ROUTINGS`, or `rank_R`, such as `rank_2` (SCMoE's), with guide `self_contrast`;
    None: the first of these."""

    def __post_init__(self) -> None:
        for name, table in (
            ("guide", GUIDES),
            ("schedule", GUIDANCE_SCHEDULES),
            ("channels", GUIDANCE_CHANNELS),
        ):
            value = getattr(self, name)
            require(value in table, f"{name} is {value!r}; allowed: {', '.join(table)}")
        routing = self.weak_routing
        require(
            routing is None or routing in WEAK_ROUTINGS or rank_of(routing) is not None,
            f"weak_routing is {routing!r}; allowed: {', '.join(WEAK_ROUTINGS)}, or rank_R, such as "
            "rank_2 for the second best expert",
        )
        require(
            0 <= self.scale <= MAX_SCALE,
            f"scale is {self.scale}; allowed: 0 to {MAX_SCALE} (1 is no guidance)",
        )
        require(
            len(self.interval) == 2 and self.interval[0] <= self.interval[1],
            f"interval is {','.join(map(str, self.interval))}; allowed: two flow times from 0 to "
            "1, the lower one first, such as 0.1,0.8",
        )
        require(0 <= self.rescale <= 1, f"rescale is {self.rescale}; allowed: 0 to 1")
        require(
            self.weak_routing is None or self.guide == "self_contrast",
            f"weak_routing is {self.weak_routing!r} with guide {self.guide!r}; allowed: only with "
            "guide 'self_contrast'",
        )

    @property
    def everywhere(self) -> bool:
        """Whether the scale holds at all times and in all channels."""
        return self.schedule == "constant" and self.interval == (0, 1) and self.channels == "all"

    def updated(self, **given: Any) -> "GuidanceConfig":
        """With fields that are given and not None.

        The weak routing goes with the guide it belongs to.

        Raises:
          ConfigError: naming the field, its value and what is allowed.
        """
        given = {name: value for name, value in given.items() if value is not None}
        kept = dataclasses.asdict(self)
        if given.get("guide", self.guide) != self.guide:
            kept["weak_routing"] = None
        try:
            return GuidanceConfig(**kept | given)
        except pydantic.ValidationError as error:
            raise ConfigError(describe(error, "guidance")) from None
