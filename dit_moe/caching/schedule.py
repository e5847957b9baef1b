"""Which units of a network are computed at which evaluation, told before sampling begins.

Nothing here needs a device or a network: whoever runs the units, a jitted sampler or a loop that
reads them from a disk, asks the same table.
"""

import dataclasses

import numpy as np

from dit_moe.config.caching import PeriodicSettings


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What is computed, of E evaluations and U units (`models.trunk.Unit`) of a network."""

    computed: np.ndarray
    """[E, U] bool. Of an evaluation that is not computed, the ends (`DiT.enter` and `leave`) are
    computed all the same."""

    @property
    def full(self) -> np.ndarray:
        """Which evaluations compute all units: [E] bool."""
        return np.all(self.computed, axis=1)


def full_evaluations(settings: PeriodicSettings, rows_E: np.ndarray) -> np.ndarray:
    """Which evaluations are computed: [E] bool.

    The first `starts_with` are, then each that is `every` after the last that was, and in any case
    one with more rows an image than the last that was computed: nothing is known of these.

    Args:
      settings: of the method.
      rows_E: how often an image is in the batch of each evaluation: 2 where guidance by class asks
        for it with and without its class, else 1.
    """
    full_E = np.zeros(len(rows_E), bool)
    last, rows = 0, 0
    for number, now in enumerate(rows_E.tolist()):
        due = number < settings.starts_with or number - last >= settings.every
        ending = settings.ends_computed and number == len(rows_E) - 1
        if due or ending or now > rows:
            full_E[number], last, rows = True, number, now
    return full_E
