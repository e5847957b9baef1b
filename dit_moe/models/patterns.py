"""Parameters by patterns of their dotted paths, in which `*` stands for any text, dots included."""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from dit_moe.config import ConfigError
from dit_moe.config.rules import listing

_NEAR = 5


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns, or more, matches the path."""
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def check_patterns(field: str, patterns: Sequence[str], paths: Sequence[str], what: str) -> None:
    """Checks that each of a field's patterns matches one of the paths, each of a `what`.

    Raises:
      ConfigError: one does not; the message tells paths that are near it.
    """
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise ConfigError(
                f"{field} has {pattern!r}, which matches no {what}; near it are "
                f"{listing(_near(pattern, paths))} (parameters.txt of a run lists all)"
            )


def _near(pattern: str, paths: Sequence[str]) -> Sequence[str]:
    return difflib.get_close_matches(pattern, paths, _NEAR, cutoff=0) or paths[:_NEAR]
