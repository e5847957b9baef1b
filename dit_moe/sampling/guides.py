"""Which network guides: guides by name, what they need, and their checks."""

import dataclasses
from collections.abc import Sequence
from typing import get_args

from dit_moe.config import (
    ROUTERS,
    Config,
    ConfigError,
    GuidanceSchedule,
    ModelConfig,
    MoEConfig,
    check_guidance_interval,
)

GUIDES = ("cfg", "auto", "self_contrast")
"""`cfg`: the network without a class. `auto`: a worse network. `self_contrast`: the network with
its tokens at other experts."""

WEAK_ROUTINGS = ("least_likely", "top_1")
"""Of `self_contrast`: the experts with the lowest scores, or the best one alone."""

MAX_SCALE = 1000
"""Beyond, nothing is left of a picture, and numbers overflow."""


def weakly_routed(model: ModelConfig, weak_routing: str) -> ModelConfig:
    """The model whose parameters are the same and whose tokens go to other experts."""
    change = {"top_k": 1} if weak_routing == "top_1" else {"choice": "least_likely"}

    def weakened(moe: MoEConfig | None) -> MoEConfig | None:
        return moe and dataclasses.replace(moe, **change)

    segments = tuple(
        dataclasses.replace(segment, moe=weakened(segment.moe)) for segment in model.segments
    )
    return dataclasses.replace(model, moe=weakened(model.moe), segments=segments)


def check_guidance(
    config: Config,
    *,
    guidance: str,
    scale: float,
    schedule: str,
    interval: Sequence[float],
    rescale: float,
    channels: str,
    weak_routing: str | None,
) -> str | None:
    """Returns the weak routing: what is given, or the default of a guide that has one.

    Raises:
      ConfigError: naming the value that cannot be used.
    """
    if guidance not in GUIDES:
        raise ConfigError(f"guidance is {guidance!r}; allowed: {', '.join(GUIDES)}")
    if not 0 <= scale <= MAX_SCALE:
        raise ConfigError(
            f"guidance_scale is {scale}; allowed: 0 to {MAX_SCALE} (1 is no guidance)"
        )
    if schedule not in get_args(GuidanceSchedule):
        allowed = ", ".join(get_args(GuidanceSchedule))
        raise ConfigError(f"guidance_schedule is {schedule!r}; allowed: {allowed}")
    check_guidance_interval(interval)
    if not 0 <= rescale <= 1:
        raise ConfigError(f"guidance_rescale is {rescale}; allowed: 0 to 1")
    if channels == "first_three" and config.model.channels < 3:
        raise ConfigError(
            f"guidance_channels is 'first_three' but the model has {config.model.channels} "
            f"channel{'s' * (config.model.channels > 1)}; allowed: all"
        )
    everywhere = schedule == "constant" and tuple(interval) == (0, 1) and channels == "all"
    _check_learnt(config.model.label_dropout, guidance, scale, everywhere=everywhere)
    if guidance == "self_contrast":
        return _weak_routing(config.model, weak_routing)
    if weak_routing is not None:
        raise ConfigError(
            f"weak_routing is {weak_routing!r} with guidance {guidance!r}; allowed: only with "
            "guidance 'self_contrast'"
        )
    return None


def _check_learnt(dropout: float, guidance: str, scale: float, *, everywhere: bool) -> None:
    """Checks that training showed the labels, null label included, that these samples need.

    Args:
      dropout: model.label_dropout.
      guidance: see `GUIDES`.
      scale: of the guidance.
      everywhere: the scale holds at all times and in all channels.

    Raises:
      ConfigError: it did not; the message names both settings.
    """
    if dropout == 0 and guidance == "cfg" and scale != 1:
        raise ConfigError(
            f"guidance_scale is {scale:g} with model.label_dropout 0, whose training never shows "
            "the null label that guidance pushes away from; allowed: guidance_scale 1, guidance "
            "'auto' or 'self_contrast', or a run with a label_dropout such as 0.1"
        )
    if dropout == 1 and not (guidance == "cfg" and scale == 0 and everywhere):
        raise ConfigError(
            f"guidance_scale is {scale:g} with model.label_dropout 1, whose training shows no "
            "class; allowed: guidance_scale 0 with guidance 'cfg', at all times and in all "
            "channels, which asks for none, or a run with a label_dropout such as 0.1"
        )


def _weak_routing(model: ModelConfig, weak_routing: str | None) -> str:
    others = [moe.router.name for moe in model.mixtures if not moe.tokens_choose]
    if others or not model.mixtures:
        what = f"has router {others[0]!r}" if others else "is dense"
        able = [repr(name) for name in ROUTERS.names if ROUTERS[name].chooser == "token"]
        raise ConfigError(
            f"guidance is 'self_contrast' but the model {what}; allowed: a model whose tokens "
            f"choose experts (routers {', '.join(able[:-1])} and {able[-1]})"
        )
    top_k = min(moe.top_k for moe in model.mixtures)
    allowed = WEAK_ROUTINGS if top_k > 1 else WEAK_ROUTINGS[:1]
    weak_routing = weak_routing or WEAK_ROUTINGS[0]
    if weak_routing not in allowed:
        raise ConfigError(
            f"weak_routing is {weak_routing!r} for a model with top_k {top_k}; "
            f"allowed: {', '.join(allowed)}"
        )
    return weak_routing


def check_guide(config: Config, guide: Config) -> None:
    """Checks that a network can guide another: both denoise the same kind of images.

    Raises:
      ConfigError: they do not.
    """
    for field in ("image_size", "channels", "num_classes"):
        own, other = getattr(config.model, field), getattr(guide.model, field)
        if own != other:
            raise ConfigError(f"guide has model.{field} {other}; allowed: {own}, as the run itself")
