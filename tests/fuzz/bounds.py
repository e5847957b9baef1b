"""How the fuzz tests run: the same examples every time; no clock decides, nothing stays on disk."""

import functools
import os

from hypothesis import HealthCheck, Phase, settings

FEW = 12
MANY = int(os.environ.get("FUZZ_EXAMPLES", "100"))
"""Examples that the slow half tries of each command; more find more."""

bounded = functools.partial(
    settings,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    # Without shrinking, which could call a slow command for minutes; lines are short already.
    phases=[Phase.generate],
)
