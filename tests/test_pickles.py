import contextlib
import shlex
import sys
import types
from pathlib import Path

import pytest

from dit_moe.config import ConfigError
from dit_moe.storage.pickles import load_pickle


@pytest.fixture
def refusing(monkeypatch):
    """PyTorch, as far as it is asked, which refuses every file with a message."""

    def install(message):
        def load(path, **settings):
            assert settings["weights_only"]
            raise RuntimeError(message)

        guard = types.SimpleNamespace(safe_globals=lambda kinds: contextlib.nullcontext())
        torch = types.SimpleNamespace(load=load, serialization=guard)
        monkeypatch.setitem(sys.modules, "torch", torch)

    return install


def test_what_is_beside_the_tensors_is_named(refusing):
    refusing("Weights only load failed.\n\tUnsupported global: GLOBAL numpy.core.scalar was not\n")
    with pytest.raises(ConfigError) as error:
        load_pickle(Path("it's mine/a.pt"))
    told = str(error.value)
    assert told.startswith("it's mine/a.pt holds numpy.core.scalar beside its tensors, which is")
    assert "\n" not in told
    # The command is one that a shell and Python can read.
    command, flag, code = shlex.split(told[told.index("python -c") :])
    assert (command, flag) == ("python", "-c")
    compile(code, "code", "exec")
    assert '"it\'s mine/a.pt"' in code
    assert '"it\'s mine/a-weights.pt"' in code


def test_damage(refusing):
    refusing("PytorchStreamReader failed reading zip archive: failed finding central directory")
    with pytest.raises(ConfigError, match=r"a\.pt is damaged, or holds more than tensors"):
        load_pickle(Path("a.pt"))
