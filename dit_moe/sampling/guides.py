"""Which network guides, and what guidance needs of the model and of its training."""

import dataclasses
from collections.abc import Callable

from dit_moe.config import (
    ROUTERS,
    WEAK_ROUTINGS,
    BiasSettings,
    Config,
    ConfigError,
    GuidanceConfig,
    ModelConfig,
    MoEConfig,
)
from dit_moe.config.moe import rank_of
from dit_moe.diffusion.denoiser import Denoiser
from dit_moe.diffusion.guidance import against, against_null_label, guide
from dit_moe.diffusion.integrate import build_objective
from dit_moe.diffusion.objective import Network
from dit_moe.models.dit import DiT
from dit_moe.models.parameters import Parameters, functional

BuildNetwork = Callable[[ModelConfig], Callable[[Parameters], DiT]]
"""From a model's config to how its parameters become a network, as `functional`."""


def guided(
    denoiser: Denoiser, weak: Denoiser | None, null_label: int, guidance: GuidanceConfig
) -> Denoiser:
    """The denoiser, guided by the weak one, or by itself without a class."""
    contrast = against(denoiser, weak) if weak else against_null_label(denoiser, null_label)
    return guide(denoiser, contrast, guidance)


def build_weak_network(
    config: Config,
    guidance: GuidanceConfig,
    weaker: Config | None = None,
    network: BuildNetwork = functional,
) -> Callable[..., Denoiser] | None:
    """From its parameters to the denoiser that guides; None: the network without a class does.

    A second argument maps the network to what is asked in its place (`caching.CachedNetwork`).

    Args:
      config: of the run that is guided, whose parameters `self_contrast` takes.
      guidance: as of `check_guidance`.
      weaker: with guide `auto`, the config of the network that guides.
      network: from a config of the guided network, with whatever routing, to how its parameters
        become a network.
    """
    match guidance.guide:
        case "cfg":
            return None
        case "auto":
            assert weaker is not None
            bind, objective = functional(weaker.model), build_objective(weaker.objective)
        case _:
            assert guidance.weak_routing is not None
            bind = network(weakly_routed(config.model, guidance.weak_routing))
            objective = build_objective(config.objective)

    def build(
        parameters: Parameters, cached: Callable[[DiT], Network] = lambda network: network
    ) -> Denoiser:
        return objective.denoiser(cached(bind(parameters)))

    return build


def weakly_routed(model: ModelConfig, weak_routing: str) -> ModelConfig:
    """The model whose parameters are the same and whose tokens go to other experts."""
    change = {"top_k": 1} if weak_routing == "top_1" else {"choice": weak_routing}

    def weakened(moe: MoEConfig | None) -> MoEConfig | None:
        if moe is None:
            return None
        router = moe.router
        if isinstance(router, BiasSettings):
            # An aim of training, which may be more than a single expert.
            router = dataclasses.replace(router, mean_experts=None)
        return dataclasses.replace(moe, router=router, **change)

    segments = tuple(
        dataclasses.replace(segment, moe=weakened(segment.moe)) for segment in model.segments
    )
    return dataclasses.replace(model, moe=weakened(model.moe), segments=segments)


def check_guidance(model: ModelConfig, guidance: GuidanceConfig) -> GuidanceConfig:
    """Returns the guidance with the weak routing that its guide has by default, if it has one.

    Raises:
      ConfigError: the model or its training does not allow it; the message names the value.
    """
    if guidance.channels == "first_three" and model.channels < 3:
        raise ConfigError(
            f"guidance.channels is 'first_three' but the model has {model.channels} "
            f"channel{'s' * (model.channels > 1)}; allowed: all"
        )
    _check_learnt(model.label_dropout, guidance)
    if guidance.guide == "self_contrast":
        return guidance.updated(weak_routing=_weak_routing(model, guidance.weak_routing))
    return guidance


def _check_learnt(dropout: float, guidance: GuidanceConfig) -> None:
    """Checks that training showed the labels, null label included, that these samples need.

    Args:
      dropout: model.label_dropout.
      guidance: of the samples.

    Raises:
      ConfigError: it did not; the message names both settings.
    """
    by_class, scale = guidance.guide == "cfg", guidance.scale
    if dropout == 0 and by_class and scale != 1:
        raise ConfigError(
            f"guidance.scale is {scale:g} with model.label_dropout 0, whose training never shows "
            "the null label that guidance pushes away from; allowed: guidance.scale 1, "
            "guidance.guide 'auto' or 'self_contrast', or a run with a label_dropout such as 0.1"
        )
    if dropout == 1 and not (by_class and scale == 0 and guidance.everywhere):
        raise ConfigError(
            f"guidance.scale is {scale:g} with model.label_dropout 1, whose training shows no "
            "class; allowed: guidance.scale 0 with guidance.guide 'cfg', at all times and in all "
            "channels, which asks for none, or a run with a label_dropout such as 0.1"
        )


def _weak_routing(model: ModelConfig, weak_routing: str | None) -> str:
    others = [moe.router.name for moe in model.mixtures if not moe.tokens_choose]
    if others or not model.mixtures:
        what = f"has router {others[0]!r}" if others else "is dense"
        able = [repr(name) for name in ROUTERS.names if ROUTERS[name].chooser == "token"]
        raise ConfigError(
            f"guidance.guide is 'self_contrast' but the model {what}; allowed: a model whose "
            f"tokens choose experts (routers {', '.join(able[:-1])} and {able[-1]})"
        )
    weak_routing = weak_routing or WEAK_ROUTINGS[0]
    top_k = min(moe.top_k for moe in model.mixtures)
    experts = min(moe.scored_experts for moe in model.mixtures)
    rank = rank_of(weak_routing)
    # The best expert alone is what a token has anyway.
    itself = top_k == 1 and (weak_routing == "top_1" or rank == 1)
    if itself or (rank or 1) > experts:
        names, first = (WEAK_ROUTINGS, 1) if top_k > 1 else (WEAK_ROUTINGS[:2], 2)
        allowed = [*names, *([f"rank_{first} to rank_{experts}"] if experts >= first else [])]
        raise ConfigError(
            f"guidance.weak_routing is {weak_routing!r} for a model with top_k {top_k} of "
            f"{experts} experts; allowed: {', '.join(allowed)}"
        )
    return weak_routing


def check_guide(model: ModelConfig, guide: ModelConfig) -> None:
    """Checks that a network can guide another: both denoise the same kind of images.

    Raises:
      ConfigError: they do not.
    """
    for field in ("image_size", "channels", "num_classes"):
        own, other = getattr(model, field), getattr(guide, field)
        if own != other:
            raise ConfigError(f"guide has model.{field} {other}; allowed: {own}, as the run itself")
