"""What compression is made of: a model in memory, and steps that make a smaller one of it.

A step is a function of a model, its own settings and the calibration. Its settings are a pydantic
dataclass with a `name`, by which the command line and recipes call it: `drop:keep=6,by=use`. A step
of the user's own is such a pair, registered by a file that `--extend` names.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from pydantic.dataclasses import dataclass

from dit_moe.config import Config, ConfigError, ModelConfig
from dit_moe.config.registry import Registry
from dit_moe.config.rules import RULES
from dit_moe.models.parameters import abstract_parameters
from dit_moe.models.unpacking import check_whole


@dataclasses.dataclass(frozen=True)
class Model:
    """A model in memory."""

    config: Config
    parameters: Mapping[str, np.ndarray]
    """All of the network's by dotted path, of the shapes and dtypes that `abstract_parameters` of
    the config's model tells."""
    ema: bool
    """They are the moving average."""
    step: int
    """Of the training, where they were saved."""

    def of(self, network: ModelConfig, parameters: Mapping[str, np.ndarray]) -> "Model":
        """The same with another network.

        Raises:
          ValueError: the parameters are not those of the network, which is a step's mistake.
        """
        abstract = abstract_parameters(network)
        wrong = [
            path
            for path in {**abstract, **parameters}
            if path not in abstract
            or path not in parameters
            or (abstract[path].shape, abstract[path].dtype)
            != (parameters[path].shape, parameters[path].dtype)
        ]
        if wrong:
            raise ValueError(f"{wrong[0]} and {len(wrong) - 1} more are not those of the network")
        config = dataclasses.replace(self.config, model=network)
        return dataclasses.replace(self, config=config, parameters=parameters)


@dataclass(frozen=True, config=RULES, kw_only=True)
class StepSettings:
    """What the settings of all steps have in common."""

    name: str

    @property
    def needs_calibration(self) -> bool:
        """Whether the step asks what the network does with data."""
        return False

    @property
    def trains(self) -> bool:
        """Whether the step trains, for which it needs a folder (`train.Ground`)."""
        return False


class Done(NamedTuple):
    """What a step made."""

    model: Model
    told: dict[str, Any]
    """What `compressed.json` says of it: plain values of JSON by name, such as `experts`, those
    that each layer kept."""


Step = Callable[[Model, Any, Any], Done]
"""From a model, the step's settings and what these ask for: the calibration, where to train, or
nothing.

Nothing that it is given may be changed in place. Where nothing is to be done, it returns the model
that it was given. What does not fit is a `ConfigError`.
"""
S = TypeVar("S", bound=Step)

STEPS: Registry[StepSettings] = Registry(StepSettings)
"""Settings by name."""
_FUNCTIONS: dict[str, Step] = {}
_FORM = "allowed: NAME or NAME:KEY=VALUE,KEY=VALUE, such as drop:keep=6,by=use"


def register_step(settings: type[StepSettings]) -> Callable[[S], S]:
    """Makes a step known by the name of its settings; a decorator of its function."""
    STEPS.add(settings)

    def register(function: S) -> S:
        _FUNCTIONS[settings.__dataclass_fields__["name"].default] = function  # pyright: ignore
        return function

    return register


def parse_step(text: str) -> StepSettings:
    """The settings that a text such as `drop:keep=6,by=use` means.

    A part without "=" belongs to the value before it: `layers=0,1` is one value.

    Raises:
      ConfigError: there is no such step, or it has no such setting or value.
    """
    name, colon, rest = text.partition(":")
    if not name or (colon and not rest):
        raise ConfigError(f"step is {text!r}; {_FORM}")
    values = {"name": name}
    for part in re.split(r",(?=[^,=]*=)", rest) if rest else ():
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise ConfigError(f"step is {text!r}, of which {part!r} says nothing; {_FORM}")
        if key in values:
            raise ConfigError(f"step is {text!r}, which has {key} twice; allowed: once")
        values[key] = value
    try:
        return STEPS.parse(values)
    except ConfigError as error:
        raise ConfigError(f"step {text!r}: {error}") from None


def step_text(settings: StepSettings) -> str:
    """The text of which `parse_step` makes these settings; what is as by default is left out."""
    defaults = {f.name: f.default for f in dataclasses.fields(settings)}
    values = {k: v for k, v in dataclasses.asdict(settings).items() if v != defaults[k]}
    parts = ",".join(f"{key}={_value_text(value)}" for key, value in values.items())
    return f"{settings.name}:{parts}" if parts else settings.name


def _value_text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def apply_step(model: Model, settings: StepSettings, asked: Any) -> Done:
    """Does the step of these settings, with what they ask for; see `Step`.

    Raises:
      ConfigError: the step cannot be done with this model; none can with one of packed matrices.
    """
    check_whole(model.config.model, "the model")
    return _FUNCTIONS[settings.name](model, settings, asked)
