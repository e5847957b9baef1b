"""Evaluations that are not computed while sampling: by which method, and how (docs/caching.md)."""

from typing import ClassVar, Literal

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from dit_moe.config.registry import Registry
from dit_moe.config.rules import (
    RULES,
    ConfigError,
    Listed,
    NonNegativeFloat,
    PositiveInt,
    Probability,
    describe,
)


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


@CACHES.add
@dataclass(frozen=True, config=RULES)
class DeltaConfig(PeriodicSettings):
    """What a range of units adds to the tokens, from the last evaluation that computed it: the last
    units at first, the first ones later (Delta-DiT, Chen et al. 2024)."""

    name: Literal["delta"] = "delta"
    every: PositiveInt = 2
    share: float = Field(default=0.5, gt=0, le=1)
    """How many of the units are in the range."""
    switch: Probability = 0.5
    """The share of the evaluations after which the first units are left out."""


@dataclass(frozen=True, config=RULES)
class WatchedSettings(CacheSettings):
    """Methods that decide by the images whether an evaluation is computed."""

    threshold: NonNegativeFloat = 0.1
    """Of the relative changes; 0: everything is computed."""
    since_computed: ClassVar[bool]
    """Whether a change is one since the last evaluation that was computed, or since the last."""

    @property
    def identity(self) -> bool:
        """With `threshold` 0."""
        return self.threshold == 0


@CACHES.add
@dataclass(frozen=True, config=RULES)
class TeaCacheConfig(WatchedSettings):
    """What all units add, until the changes of what the first block sees, each mapped to the change
    of the prediction that is to be expected, sum up to a threshold (TeaCache, Liu et al. 2024)."""

    name: Literal["teacache"] = "teacache"
    coefficients: Listed[float] = ()
    """Of the polynomial, highest power first; those of the run's calibration (`python -m
    dit_moe.caching`)."""
    since_computed: ClassVar[bool] = False


@CACHES.add
@dataclass(frozen=True, config=RULES)
class FirstBlockConfig(WatchedSettings):
    """What all units but the first add, until what the first adds has changed by a threshold since
    they were computed (the first-block cache of public code)."""

    name: Literal["first_block"] = "first_block"
    since_computed: ClassVar[bool] = True


def parse_cache(text: str) -> CacheSettings:
    """A method as the command line names it: `fora`, or `taylorseer:every=4,order=1`.

    Raises:
      ConfigError: there is no such method, or it has no such field or value.
    """
    name, _, fields = text.partition(":")
    if name not in CACHES.names:
        raise ConfigError(
            f"step_cache is {text!r}; allowed: {', '.join(CACHES.names)}, each with fields as in "
            "fora:every=2"
        )
    pairs = [part.partition("=") for part in fields.split(",") if part.strip()]
    fields_of = CACHES[name].__dataclass_fields__  # pyright: ignore[reportAttributeAccessIssue]
    known = [field for field in fields_of if field != "name"]
    for key, equals, value in pairs:
        if key.strip() not in known or not equals or not value.strip():
            raise ConfigError(
                f"step_cache is {text!r}, where {key + equals + value!r} is no field of {name!r}; "
                f"allowed: {', '.join(f'{field}=VALUE' for field in known)}"
            )
    values = {key.strip(): value.strip() for key, _, value in pairs}
    if len(values) < len(pairs):
        raise ConfigError(f"step_cache is {text!r}, with a field twice; allowed: each once")
    try:
        return CACHES[name](**values)
    except pydantic.ValidationError as error:
        raise ConfigError(describe(error, "step_cache")) from None
