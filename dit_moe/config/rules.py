"""What all configs share: their error, their checks and the types of their fields."""

import math
from collections.abc import Sequence
from typing import Annotated, TypeAlias, TypeVar

import pydantic
from pydantic import Field

from dit_moe.storage.errors import ConfigError
from dit_moe.storage.records import shown

T = TypeVar("T")
RULES = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)
"""Held by every config and every record in a file: an unknown field or infinity is an error."""
MAX_SIZE = 2**31 - 1
"""Steps, sizes and labels are 32-bit numbers on every device."""
PositiveInt = Annotated[int, Field(gt=0, le=MAX_SIZE)]
NonNegativeInt = Annotated[int, Field(ge=0, le=MAX_SIZE)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Probability = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
MAX_SIGMA_REL = 12**-0.5
"""Relative width of the plain mean over training; wider averages would favour its beginning."""
SigmaRel = Annotated[float, Field(gt=0, lt=MAX_SIGMA_REL)]


def _split(value: object) -> object:
    return (
        [part.strip() for part in value.split(",") if part.strip()]
        if isinstance(value, str)
        else value
    )


# On the command line, values with commas between them.
Listed: TypeAlias = Annotated[tuple[T, ...], pydantic.BeforeValidator(_split)]


def divisors(number: int) -> list[int]:
    """From 1 to the number itself, in about its square root of steps."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    large = [number // d for d in reversed(small)]
    return small + large[1:] if small and small[-1] == large[0] else small + large


def require(condition: bool, message: str) -> None:
    """Raises a `ConfigError` with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def check_seed(seed: int, name: str = "seed") -> None:
    """Raises a `ConfigError` unless a number can be a seed, as of `Seed`; the message calls it
    `name`."""
    require(0 <= seed < 2**32, f"{name} is {seed}; allowed: 0 to {2**32 - 1}")


def listing(values: Sequence[object], limit: int = 12) -> str:
    """The values with commas, cut after `limit` of them."""
    texts = [str(v) for v in values]
    return ", ".join(texts if len(texts) <= limit else [*texts[:limit], "..."])


def describe(error: pydantic.ValidationError, root: str = "") -> str:
    """One sentence for the first mistake that pydantic found in what is called `root`."""
    first = error.errors()[0]
    where = ".".join(filter(None, (root, *map(str, first["loc"]))))
    match first["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            return f"{where} is not a field of the config"
        case "missing" | "missing_argument":
            return f"{where} is missing; it has no default"
        case "value_error":
            message = first["msg"].removeprefix("Value error, ")
            return f"{where}.{message}" if where else message
        case _:
            message = first["msg"][0].lower() + first["msg"][1:]
            return f"{where} is {shown(first['input'])}; {message}"
