"""The packages that texts need beside the others: the extra `text`."""

import importlib.util

from dit_moe.config import ConfigError


def need_package(package: str, what: str) -> None:
    """Checks that a package of the extra is installed.

    Args:
      package: as it is imported.
      what: it is needed for, as the end of a clause.

    Raises:
      ConfigError: it is not.
    """
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"{package} is not installed, {what}; allowed: after pip install 'dit-moe[text]'"
        )
