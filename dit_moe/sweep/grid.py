"""The file that describes a sweep: a config, and axes along which its fields vary."""

import tomllib
from pathlib import Path
from typing import Any

import pydantic
from pydantic.dataclasses import dataclass

from dit_moe.config import ConfigError
from dit_moe.config.files import own_file
from dit_moe.config.rules import RULES, Listed, PositiveInt, describe, require
from dit_moe.storage.records import check_plain, read_json

Settings = dict[str, Any]
"""Values by what they set: a field of the config by its dotted name, such as model.moe.top_k, or
a group of them by a table; "config" (FILE[:ARGUMENT]); or one of `budget.UNITS` as budget.UNIT."""


@dataclass(frozen=True, config=RULES)
class Variant:
    """A place on an axis that has a name of its own."""

    name: str
    set: Settings


@dataclass(frozen=True, config=RULES)
class Axis:
    """What varies together: the values of one field, or variants with settings of several."""

    name: str = ""
    """A column of the table, and part of the names of runs; empty: the field's last word."""
    field: str | None = None
    values: tuple[str | bool | int | float, ...] = ()
    """Of the field."""
    variants: tuple[Variant, ...] = ()
    """Instead of field and values."""

    def __post_init__(self) -> None:
        of_field = self.field is not None and bool(self.values)
        require(
            not self.variants if of_field else self.field is None and not self.values,
            "field and values go together, without variants; allowed: field with at least one of "
            "values, or name with variants",
        )
        require(
            of_field or (bool(self.variants) and self.name != ""),
            "name or variants is missing; allowed: field with values, or name with variants",
        )

    @property
    def title(self) -> str:
        """The name, given or not."""
        return self.name or str(self.field).rpartition(".")[2]

    @property
    def places(self) -> list[tuple[str, Settings]]:
        """Every place on the axis: its text and what it sets."""
        if self.field is not None:
            return [(_text(value), {self.field: value}) for value in self.values]
        return [(variant.name, variant.set) for variant in self.variants]


@dataclass(frozen=True, config=RULES)
class Grid:
    """All of the file. There is a run for every combination of places on the axes."""

    config: str
    """FILE.py or FILE.py:ARGUMENT, as of training."""
    set: Settings = pydantic.Field(default_factory=dict)
    """For all runs."""
    axes: tuple[Axis, ...] = ()
    """The first varies slowest. With the seed first, a sweep that is stopped early compares all
    others."""
    judge: PositiveInt | None = None
    """How many samples of each run are judged; None: none are drawn."""
    heldout: Listed[str] = ()
    """Runs that the law is not fitted to but predicts, by patterns of their names in which * stands
    for any text."""

    def __post_init__(self) -> None:
        titles = [axis.title for axis in self.axes]
        for title in titles:
            require(
                titles.count(title) == 1, f"axes has {title!r} twice; allowed: a name for each axis"
            )


def read_grid(path: Path) -> Grid:
    """Reads a grid from TOML, or from JSON where the file's name ends so.

    Raises:
      ConfigError: it is missing, or no grid; the message names the field.
    """
    path = own_file(path)
    if not path.is_file():
        raise ConfigError(f"grid is {str(path)!r}, which is not a file; allowed: *.toml or *.json")
    values = read_json(path) if path.suffix == ".json" else _read_toml(path)
    try:
        return pydantic.TypeAdapter(Grid).validate_python(values)
    except pydantic.ValidationError as error:
        raise ConfigError(f"{path}: {describe(error, 'grid')}") from None


def _read_toml(path: Path) -> Any:
    try:
        values = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
        check_plain(values)
    except RecursionError:
        raise ConfigError(f"{path} is not valid TOML: it is nested too deep") from None
    except ValueError as error:  # `ConfigError` and what is no UTF-8 too
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    return values


def flat(settings: Settings, prefix: str = "") -> Settings:
    """The settings without groups, by dotted name."""
    found: Settings = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def as_override(name: str, value: Any) -> str:
    """What sets a field on the command line."""
    text = ",".join(map(_text, value)) if isinstance(value, list | tuple) else _text(value)
    return f"--config.{name}={text}"


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
