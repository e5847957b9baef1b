"""Methods by their settings."""

from collections.abc import Callable

import numpy as np

from dit_moe.caching.forecast import Forecast
from dit_moe.caching.network import Method
from dit_moe.caching.ranges import Delta
from dit_moe.caching.watched import Watched
from dit_moe.config.caching import CacheSettings

Build = Callable[..., Method]
"""From settings, rows_E as of `schedule.full_evaluations`, and the units of the network."""

_BUILD: dict[str, Build] = {
    "fora": Forecast,
    "taylorseer": Forecast,
    "delta": Delta,
    "teacache": Watched,
    "first_block": Watched,
}


def build_method(settings: CacheSettings, rows_E: np.ndarray, units: int) -> Method:
    """The method that the settings describe.

    Args:
      settings: of one that is not the identity.
      rows_E: how often an image is in the batch of each evaluation, 1 or 2.
      units: how many units the network has (`ModelConfig.units`).

    Raises:
      ConfigError: it does not fit so many evaluations or units; the message names the field.
    """
    return _BUILD[settings.name](settings, rows_E, units)
