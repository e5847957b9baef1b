"""All steps of this package, and the chains of them that have a name."""

from collections.abc import Sequence

from dit_moe.config import ConfigError
from dit_moe.surgery.compress.drop import DropSettings, drop
from dit_moe.surgery.compress.quantise import QuantiseSettings, quantise
from dit_moe.surgery.compress.slim import SlimSettings, slim
from dit_moe.surgery.compress.sparsify import SparsifySettings, sparsify
from dit_moe.surgery.compress.steps import StepSettings, parse_step, register_step
from dit_moe.surgery.compress.stun import StunSettings, stun
from dit_moe.surgery.compress.train import TrainSettings, train

register_step(DropSettings)(drop)
register_step(StunSettings)(stun)
register_step(SparsifySettings)(sparsify)
register_step(SlimSettings)(slim)
register_step(TrainSettings)(train)
register_step(QuantiseSettings)(quantise)

RECIPES: dict[str, tuple[str, ...]] = {
    # A fifth of the experts and a quarter of the weights of the others: 40% (STUN, on Arctic).
    "stun-40": ("stun:share=0.2", "sparsify:share=0.25,layers=owl"),
    "half-experts": ("drop:share=0.5,by=output",),
    "w8": ("quantise:bits=8,method=nearest",),
    "w4": ("quantise:bits=4,method=gptq",),
    "w3": ("quantise:bits=3,method=gptq,attention=4,shared=4",),
}
"""The steps of each recipe, as the command line has them."""


def chosen_steps(texts: Sequence[str], recipe: str | None = None) -> tuple[StepSettings, ...]:
    """The steps that the texts mean, or those of the recipe.

    Raises:
      ConfigError: both are given or neither is, or one is unknown.
    """
    if bool(texts) == (recipe is not None):
        given = "both are given" if texts else "neither is given"
        raise ConfigError(f"of steps and recipe {given}; allowed: one of them")
    if recipe is None:
        return tuple(map(parse_step, texts))
    if recipe not in RECIPES:
        known = ", ".join(RECIPES) or "none, as no recipe is known; steps in its place"
        raise ConfigError(f"recipe is {recipe!r}; allowed: {known}")
    return tuple(map(parse_step, RECIPES[recipe]))
