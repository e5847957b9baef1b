"""Evaluations that are not computed while sampling: by which method, and how (docs/caching.md)."""

from typing import ClassVar, Literal

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from dit_moe.config.registry import Registry
from dit_moe.config.rules import RULES, ConfigError, PositiveInt, describe


@dataclass(frozen=True, config=RULES)
class CacheSettings:
    """What all methods have in common. An evaluation is a call of the network by the solver, for
    both halves of guidance together; a solver may have several a step."""

    name: str

    @property
    def identity(self) -> bool:
        """Whether everything is computed, so that samples are those without a cache."""
        raise NotImplementedError


CACHES: Registry[CacheSettings] = Registry(CacheSettings)


@dataclass(frozen=True, config=RULES)
class PeriodicSettings(CacheSettings):
    """Methods that compute whole evaluations at regular distances."""

    every: PositiveInt = 3
    """The distance of evaluations that are computed; 1: all are."""
    starts_with: ClassVar[int] = 1
    """How many are computed at the beginning."""
    ends_computed: ClassVar[bool] = False
    """Whether the last one is computed in any case."""

    @property
    def identity(self) -> bool:
        """With `every` 1."""
        return self.every == 1


@CACHES.add
@dataclass(frozen=True, config=RULES)
class ForaConfig(PeriodicSettings):
    """What attention and feed-forward gave at the last evaluation that was computed, under the
    gates of the present one (FORA, Selvaraju et al. 2024)."""

    name: Literal["fora"] = "fora"
    ends_computed: ClassVar[bool] = True


@CACHES.add
@dataclass(frozen=True, config=RULES)
class TaylorSeerConfig(PeriodicSettings):
    """The same, forecast by a Taylor series whose derivatives are differences of the evaluations
    that were computed (TaylorSeer, Liu et al. 2025)."""

    name: Literal["taylorseer"] = "taylorseer"
    order: int = Field(default=2, ge=0, le=4)
    """The highest derivative; 0: none."""
    starts_with: ClassVar[int] = 2


def parse_cache(text: str) -> CacheSettings:
    """A method as the command line names it: `fora`, or `taylorseer:every=4,order=1`.

    Raises:
      ConfigError: there is no such method, or it has no such field or value.
    """
    name, _, fields = text.partition(":")
    if name not in CACHES.names:
        raise ConfigError(
            f"cache is {text!r}; allowed: {', '.join(CACHES.names)}, each with fields as in "
            "fora:every=2"
        )
    pairs = [part.partition("=") for part in fields.split(",") if part.strip()]
    fields_of = CACHES[name].__dataclass_fields__  # pyright: ignore[reportAttributeAccessIssue]
    known = [field for field in fields_of if field != "name"]
    for key, equals, value in pairs:
        if key.strip() not in known or not equals or not value.strip():
            raise ConfigError(
                f"cache is {text!r}, where {key + equals + value!r} is no field of {name!r}; "
                f"allowed: {', '.join(f'{field}=VALUE' for field in known)}"
            )
    values = {key.strip(): value.strip() for key, _, value in pairs}
    if len(values) < len(pairs):
        raise ConfigError(f"cache is {text!r}, with a field twice; allowed: each once")
    try:
        return CACHES[name](**values)
    except pydantic.ValidationError as error:
        raise ConfigError(describe(error, "cache")) from None
