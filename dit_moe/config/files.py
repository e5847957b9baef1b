"""Configs from files, command lines and run folders, and back.

All ways check the same rules and raise `ConfigError` with one sentence that names the field, the
value and what is allowed.
"""

import dataclasses
import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pydantic

from dit_moe.config import (
    SOLVER_OPTIONS,
    Config,
    ConfigError,
    MoEConfig,
    ObjectiveConfig,
    RouterConfig,
)
from dit_moe.storage.files import FilePath
from dit_moe.storage.records import check_plain, read_json, shown

_VARIANT = re.compile(r"--config\.(.*\.)?(objective|router)\.name=")
_VARIANTS = {
    variant.name: variant
    for annotated in (ObjectiveConfig, RouterConfig)
    for variant in get_args(get_args(annotated)[0])
}


def from_dict(values: dict[str, Any]) -> Config:
    """Builds a validated config from plain values.

    Raises:
      ConfigError: naming the first wrong field, its value and what is allowed.
    """
    check_plain(values, "config")
    try:
        return pydantic.TypeAdapter(Config).validate_python(values)
    except pydantic.ValidationError as error:
        raise ConfigError(describe(error)) from None


def to_dict(config: Config) -> dict[str, Any]:
    """The plain values of a config, ready for JSON."""
    return dataclasses.asdict(config)


def to_json(config: Config) -> str:
    """The text of a run folder's `config.json`."""
    return json.dumps(to_dict(config), indent=2) + "\n"


def load_json(path: FilePath) -> Config:
    """Reads the `config.json` of a run folder.

    Raises:
      ConfigError: if the file is missing, not JSON, or not a valid config.
    """
    try:
        values = read_json(path)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; expected the config.json of a run") from None
    try:
        return from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def load_file(spec: str, overrides: Sequence[str] = ()) -> Config:
    """Runs a config file and applies command-line overrides.

    Args:
      spec: `FILE.py` or `FILE.py:ARGUMENT`; the file defines `get_config(argument: str = ...)`.
      overrides: `--config.train.steps=2000` and the like. Setting the `name` of an objective or
        router switches to that variant with its defaults.

    Raises:
      ConfigError: for a file that cannot be used or a wrong override.
    """
    filename, _, argument = spec.partition(":")
    path = Path(filename)
    if not path.is_file():
        raise ConfigError(f"--config is {filename!r}, which is not a file; allowed: configs/*.py")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if module_spec is None or module_spec.loader is None:
        raise ConfigError(f"--config is {filename!r}; allowed: a Python file (*.py)")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        config = module.get_config(argument) if argument else module.get_config()
    except ConfigError:
        raise
    except pydantic.ValidationError as error:
        raise ConfigError(f"{filename}: {describe(error)}") from None
    except Exception as error:
        raise ConfigError(
            f"{spec} gives no config: {type(error).__name__}: {error}; expected a file that "
            "defines get_config(argument)"
        ) from error
    if not isinstance(config, Config):
        raise ConfigError(f"{filename}: get_config returned {config!r}; allowed: a Config")
    return override(config, overrides)


def override(config: Config, overrides: Sequence[str]) -> Config:
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
            if node.get(parent) is None and parent == "moe":
                node[parent] = dataclasses.asdict(MoEConfig())  # a dense model becomes sparse
            node = node[parent]
        _check_field(node, name, where)
        if _VARIANT.match(text):
            node.clear()
            node.update(dataclasses.asdict(_VARIANTS[value]()) if value in _VARIANTS else {})
            if parents == ["objective"]:
                # The old solver belongs to the old objective, and its options to it.
                values["sample"] |= dict.fromkeys(SOLVER_OPTIONS) | {"solver": "auto"}
        node[name] = None if value.lower() in ("none", "null") else value
    return from_dict(values)


def _check_field(node: Any, name: str, where: str) -> str:
    """The dotted name of a field of the node at `where`, which must have it."""
    if not isinstance(node, dict):
        raise ConfigError(f"{where}.{name} is not a field; {where} is a value")
    if name not in node:
        raise ConfigError(f"{where}.{name} is not a field; allowed: {', '.join(node)}")
    return f"{where}.{name}"


def differences(a: Config, b: Config) -> list[str]:
    """Dotted names of the fields in which two configs differ."""

    def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
        if not isinstance(value, dict):
            return {prefix: value}
        parts = [flatten(v, f"{prefix}.{k}" if prefix else k) for k, v in value.items()]
        return {k: v for part in parts for k, v in part.items()}

    flat_a, flat_b = flatten(to_dict(a)), flatten(to_dict(b))
    missing = object()
    keys = dict.fromkeys([*flat_a, *flat_b])
    return [k for k in keys if flat_a.get(k, missing) != flat_b.get(k, missing)]


def describe(error: pydantic.ValidationError) -> str:
    """One sentence for the first mistake that pydantic found."""
    first = error.errors()[0]
    # After a field that holds one of several variants, pydantic's path names the variant.
    location = ("config", *map(str, first["loc"]))
    path = [
        p
        for p, parent in zip(location, ("", *location), strict=False)
        if parent not in ("router", "objective")
    ]
    where = ".".join(path)
    match first["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            return f"{where} is not a field of the config"
        case "missing" | "missing_argument":
            return f"{where} is missing; it has no default"
        case "value_error":
            return f"{where}.{first['msg'].removeprefix('Value error, ')}"
        case "union_tag_invalid":
            context = first.get("ctx", {})
            return f"{where}.name is {shown(context['tag'])}; allowed: {context['expected_tags']}"
        case _:
            message = first["msg"][0].lower() + first["msg"][1:]
            return f"{where} is {shown(first['input'])}; {message}"
