"""The command, up to where it serves the page."""

import contextlib
import os
import socket

import pytest

from dit_moe.commands import play
from dit_moe.config import ConfigError
from dit_moe.play import serve
from tests.analysis.fresh_run import write_fresh_run
from tests.tiny import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_fresh_run(tmp_path_factory.mktemp("run"), tiny())


def test_two_runs_are_served_at_the_address_that_is_told(run, monkeypatch, capsys):
    asked = {}

    @contextlib.contextmanager
    def served(player, host, port):
        asked.update(runs=len(player.drawers), host=host, port=port)
        yield "http://there/"
        asked["closed"] = True

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(serve, "need_gradio", lambda: None)
    monkeypatch.setattr(serve, "served", served)
    monkeypatch.setattr(serve, "linger", interrupt)
    line = ["--workdir", str(run), "--compare", str(run), "--parameters", "raw"]
    assert play.main(line) == 130
    assert asked == {"runs": 2, "host": "127.0.0.1", "port": serve.PORT}
    assert "The page: http://there/ (Ctrl-C ends it)\n" in capsys.readouterr().out


def test_without_the_extra(run, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert play.main(["--workdir", str(run)]) == 2
    told = capsys.readouterr().err
    assert told == (
        "error: gradio is not installed, of which the page is made; allowed: after pip install "
        "'dit-moe[play]'\n"
    )


@pytest.mark.parametrize("port", [-1, 2**16])
def test_ports_that_are_none(port):
    with pytest.raises(ConfigError, match=rf"port is {port}; allowed: 0 \(any that is free\) to"):
        serve._checked("127.0.0.1", port)


def test_a_port_in_use():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port is {port} of host '127.0.0.1', where"):
            serve._checked("127.0.0.1", port)
        assert serve._checked("127.0.0.1", 0) not in (0, port)
    with pytest.raises(ConfigError, match=r"port is 0 of host 'a..b'"):
        serve._checked("a..b", 0)


def test_the_environment_is_as_before():
    before = dict(os.environ)
    with serve._environment("there"):
        assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
        assert os.environ["GRADIO_TEMP_DIR"] == "there"
        assert os.environ["NO_PROXY"].endswith("localhost,127.0.0.1")
    assert dict(os.environ) == before
