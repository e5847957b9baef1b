"""Which parameters a run learns, and which it keeps as they are (`train.freeze`)."""

import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from dit_moe.config import ConfigError
from dit_moe.config.rules import listing

T = TypeVar("T")
_NEAR = 5


def split_frozen(
    parameters: Mapping[str, T], freeze: Sequence[str]
) -> tuple[dict[str, T], dict[str, T]]:
    """Parameters that learn, and those that do not; pure.

    Args:
      parameters: all of a network by dotted path, of whatever kind.
      freeze: patterns of paths, in which `*` stands for any text, dots included.

    Raises:
      ConfigError: a pattern matches no path, or all paths are matched.
    """
    for pattern in freeze:
        if not any(fnmatchcase(path, pattern) for path in parameters):
            raise ConfigError(
                f"config.train.freeze has {pattern!r}, which matches no parameter; near it are "
                f"{listing(_near(pattern, list(parameters)))} (parameters.txt of a run lists all)"
            )
    frozen = {
        path: parameter
        for path, parameter in parameters.items()
        if any(fnmatchcase(path, pattern) for pattern in freeze)
    }
    if frozen and len(frozen) == len(parameters):
        raise ConfigError(
            f"config.train.freeze is {', '.join(freeze)!r}, which matches every parameter; "
            "allowed: patterns that leave some to learn"
        )
    return {path: p for path, p in parameters.items() if path not in frozen}, frozen


def _near(pattern: str, paths: list[str]) -> list[str]:
    return difflib.get_close_matches(pattern, paths, _NEAR, cutoff=0) or paths[:_NEAR]
