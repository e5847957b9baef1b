import os
import signal
import tempfile

import pytest

from tests.xla import FLAGS, known

# Before JAX starts. The workers of pytest-xdist inherit the flags and the folder.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *known(FLAGS)])
    # Many tests compile the same train step.
    _cache = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ.setdefault("JAX_PLATFORMS", "cpu")


@pytest.fixture
def in_a_terminal():
    """SIGHUP ends the process, also where the suite was started by nohup, which ignores it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
