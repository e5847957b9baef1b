"""Configs from files, command lines and run folders, and back.

All ways check the same rules and raise `ConfigError` with one sentence that names the field, the
value and what is allowed.
"""

import copy
import dataclasses
import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Protocol, TypeVar

import pydantic

from dit_moe.config import (
    OBJECTIVES,
    ROUTERS,
    SOLVER_OPTIONS,
    Config,
    ConfigError,
    DistillConfig,
    LowRankConfig,
    MoEConfig,
    PairsConfig,
    PregateConfig,
    TrainConfig,
)
from dit_moe.config.rules import describe
from dit_moe.storage.files import FilePath
from dit_moe.storage.records import check_format, check_plain, read_json, shown

FORMAT = 2
"""The format of run folders and open folders, told by their `config.json`: goes up when what they
hold is called or means something else. A folder without a number is of format 1."""


class RunConfig(Protocol):
    """What describes a run, of images or of something else: a pydantic dataclass."""

    of: ClassVar[str]
    """What the run is on, such as "images": stands in its config.json where it is not these."""
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def train(self) -> TrainConfig:
        """How it learns."""
        ...


C = TypeVar("C", bound=RunConfig)

_ABSENT = {"train": {"ema_warmup": False}}
"""What runs did that were made before these fields were, and so lack them in their config.json."""

_WITH_A_FIELD = {
    "moe": dataclasses.asdict(MoEConfig()),
    "pregate": dataclasses.asdict(PregateConfig()),
    "lora": dataclasses.asdict(LowRankConfig()),
    "pairs": dataclasses.asdict(PairsConfig()),
    "distill": {**dataclasses.asdict(DistillConfig("RUN")), "teacher": ""},  # which is to be given
}
"""What is none until one of its fields is set on the command line: a dense model becomes sparse."""

_OTHERWISE = "train again, or read it with dit_moe 0.1.0"

_VARIANT = re.compile(r"--config\.(?:.*\.)?(objective|router)\.name=")
_REGISTRIES = {"objective": OBJECTIVES, "router": ROUTERS}


def from_dict(values: dict[str, Any]) -> Config:
    """Builds a validated config from plain values.

    Raises:
      ConfigError: naming the first wrong field, its value and what is allowed.
    """
    return parse(values, Config)


def parse(values: dict[str, Any], kind: type[C]) -> C:
    """The same of any kind."""
    check_plain(values, "config")
    try:
        return pydantic.TypeAdapter(kind).validate_python(values)
    except pydantic.ValidationError as error:
        raise ConfigError(describe(error, "config")) from None


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The plain values of a config, ready for JSON."""
    return dataclasses.asdict(config)


def to_json(config: RunConfig) -> str:
    """The text of the `config.json` of a run folder or an open folder."""
    of = {} if config.of == Config.of else {"of": config.of}
    return json.dumps({"format": FORMAT, **of, **to_dict(config)}, indent=2) + "\n"


def load_json(path: FilePath) -> Config:
    """Reads the `config.json` of a run folder or an open folder.

    Raises:
      ConfigError: if the file is missing, not JSON, of another format than `FORMAT`, of a run that
        is not on images, or not a valid config.
    """
    return read_config(path, Config)


def read_config(path: FilePath, kind: type[C]) -> C:
    """The same of any kind."""
    try:
        values = read_json(path)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; expected the config.json of a run") from None
    if isinstance(values, dict):
        check_format(path, values.pop("format", 1), FORMAT, _OTHERWISE)
        of = values.pop("of", Config.of)
        if of != kind.of:
            raise ConfigError(
                f"{path} is of a run on {shown(of)}; allowed here: one on {kind.of!r}"
            )
        _fill_absent(values)
    try:
        return parse(values, kind)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _fill_absent(values: dict[str, Any]) -> None:
    for part, fields in _ABSENT.items():
        there = values.get(part, {})
        if isinstance(there, dict):  # what is not is refused as a config
            values[part] = fields | there


def load_file(spec: str, overrides: Sequence[str] = ()) -> Config:
    """Runs a config file and applies command-line overrides.

    Args:
      spec: `FILE.py` or `FILE.py:ARGUMENT`; the file defines `get_config(argument: str = ...)`.
        `configs/NAME.py` is the package's own where there is no such file.
      overrides: `--config.train.steps=2000` and the like. Setting the `name` of an objective or
        router switches to that variant with its defaults.

    Raises:
      ConfigError: for a file that cannot be used or a wrong override.
    """
    filename, _, argument = spec.partition(":")
    module = run_file(own_file(Path(filename)), "--config")
    try:
        config = module.get_config(argument) if argument else module.get_config()
    except ConfigError:
        raise
    except pydantic.ValidationError as error:
        raise ConfigError(f"{filename}: {describe(error, 'config')}") from None
    except Exception as error:
        raise ConfigError(
            f"{spec} gives no config: {type(error).__name__}: {error}; expected a file that "
            "defines get_config(argument)"
        ) from error
    if not isinstance(config, Config):
        raise ConfigError(f"{filename}: get_config returned {config!r}; allowed: a Config")
    return override(config, overrides)


def own_file(path: Path) -> Path:
    """The file itself, or the package's own of this name, such as configs/digits.py, where there is
    none here."""
    inside = Path(__file__).parents[1] / "configs"
    folder = inside if inside.is_dir() else Path(__file__).parents[2] / "configs"  # a checkout's
    own = folder / path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    return own if not path.exists() and ".." not in path.parts and own.is_file() else path


def run_file(path: Path, flag: str) -> ModuleType:
    """Runs a Python file of the user's, and returns it as a module.

    Raises:
      ConfigError: it is no such file, or cannot be run.
    """
    if not path.is_file():
        example = "; allowed: configs/*.py" if flag == "--config" else ""
        raise ConfigError(f"{flag} is {str(path)!r}, which is not a file{example}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{flag} is {str(path)!r}; allowed: a Python file (*.py)")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ConfigError:
        raise
    except pydantic.ValidationError as error:
        raise ConfigError(f"{path}: {describe(error, 'config')}") from None
    except Exception as error:
        what = "gives no config" if flag == "--config" else "cannot be run"
        raise ConfigError(f"{path} {what}: {type(error).__name__}: {error}") from error
    return module


def override(config: C, overrides: Sequence[str]) -> C:
    """Applies `--config.a.b=value` texts; see `load_file`."""
    values = to_dict(config)
    # Variants are chosen first, whatever the order, so that their own fields can follow.
    for text in sorted(overrides, key=lambda text: not _VARIANT.match(text)):
        key, equals, value = text.partition("=")
        if not key.startswith("--config.") or not equals:
            raise ConfigError(f"unknown argument {text!r}; allowed: --config.FIELD=VALUE")
        *parents, name = key.removeprefix("--config.").split(".")
        node: Any = values
        where = "config"
        for parent in parents:
            where = _check_field(node, parent, where)
            if node.get(parent) is None and parent in _WITH_A_FIELD:
                node[parent] = copy.deepcopy(_WITH_A_FIELD[parent])
            node = node[parent]
        _check_field(node, name, where)
        if _VARIANT.match(text):
            node.clear()
            registry = _REGISTRIES[parents[-1]]
            node.update(dataclasses.asdict(registry[value]()) if value in registry.names else {})
            if parents == ["objective"]:
                # The old solver belongs to the old objective, and its options to it.
                values["sample"] |= dict.fromkeys(SOLVER_OPTIONS) | {"solver": "auto"}
        node[name] = None if value.lower() in ("none", "null") else value
    return parse(values, type(config))


def _check_field(node: Any, name: str, where: str) -> str:
    """The dotted name of a field of the node at `where`, which must have it."""
    if not isinstance(node, dict):
        raise ConfigError(f"{where}.{name} is not a field; {where} is a value")
    if name not in node:
        raise ConfigError(f"{where}.{name} is not a field; allowed: {', '.join(node)}")
    return f"{where}.{name}"


def flat(config: RunConfig) -> dict[str, Any]:
    """The values of all fields by dotted name."""

    def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
        if isinstance(value, tuple | list) and any(isinstance(v, dict) for v in value):
            value = dict(enumerate(value))
        if not isinstance(value, dict):
            return {prefix: value}
        parts = [flatten(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in value.items()]
        return {k: v for part in parts for k, v in part.items()}

    return flatten(to_dict(config))


def differences(a: RunConfig, b: RunConfig) -> list[str]:
    """Dotted names of the fields in which two configs differ."""
    flat_a, flat_b = flat(a), flat(b)
    missing = object()
    keys = dict.fromkeys([*flat_a, *flat_b])
    return [k for k in keys if flat_a.get(k, missing) != flat_b.get(k, missing)]
