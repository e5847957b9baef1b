"""Several processes train as one."""

import csv
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from dit_moe.config import ConfigError
from dit_moe.config.files import to_json
from dit_moe.devices import hosts
from dit_moe.training.interrupt import Interrupt
from dit_moe.training.loop import train
from tests.lost_output import LostOutput
from tests.processes import free_port, run_together
from tests.tiny import tiny
from tests.xla import with_devices

STEPS, SIGNAL_AT = 8, 3
CONFIG = tiny(steps=STEPS, log_every=1, sample_every=4)
SAID = ("parameters, listed in", "a device (parameters", "stopped by 15")  # by the lead alone
ROOT = Path(__file__).parents[2]


def losses(workdir: Path) -> dict[int, float]:
    with (workdir / "metrics.csv").open() as file:
        return {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file)}


def start(workdir: Path, num_processes: int, signalled: int) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of every process."""
    config_path = workdir.parent / "config.json"
    config_path.write_text(to_json(CONFIG))
    port = free_port()
    script = [sys.executable, ROOT / "tests" / "training" / "host_process.py", config_path, workdir]
    return run_together(
        num_processes,
        lambda process_id: [*script, port, num_processes, process_id, signalled, SIGNAL_AT],
        {
            **os.environ,
            "XLA_FLAGS": with_devices(8 // num_processes),
            "PYTHONPATH": str(ROOT),
        },
        timeout=500,
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone")
    assert train(CONFIG, workdir) is None
    return workdir


@pytest.mark.parametrize("num_processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_give_the_losses_of_one_and_stop_together(num_processes, tmp_path, alone):
    """A signal to the last process stops all of them at one step; one process then goes on."""
    tmp_path = tmp_path / "run"
    results = start(tmp_path, num_processes, signalled=num_processes - 1)
    assert [code for code, _, _ in results] == [128 + signal.SIGTERM] * num_processes, results
    stopped_at = SIGNAL_AT + 2
    assert sorted(losses(tmp_path)) == list(range(1, stopped_at + 1))
    (_, lead_out, lead_err), *others = results
    for said in SAID:
        assert said in lead_out
        assert not [out for _, out, _ in others if said in out]
    assert "step/s" in lead_err
    assert not [err for _, _, err in others if "step/s" in err]
    assert (tmp_path / "samples" / "step_00000004.png").exists()

    assert train(CONFIG, tmp_path) is None
    expected, actual = losses(alone), losses(tmp_path)
    assert sorted(actual) == list(range(1, STEPS + 1))
    for step, loss in expected.items():
        np.testing.assert_allclose(actual[step], loss, rtol=1e-5)


def test_one_process_needs_no_others():
    said = []
    hosts.on_lead(lambda: said.append(hosts.is_lead()))
    assert said == [True]
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    assert hosts.Agreement(mesh)(15) == 15
    with pytest.raises(ConfigError, match="busy"):
        hosts.on_lead(lambda: (_ for _ in ()).throw(ConfigError("busy")))


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(errno.ENOSPC, "No space left")])
def test_what_cannot_be_said_ends_nothing(error, monkeypatch):
    monkeypatch.setattr(sys, "stdout", LostOutput(error))
    hosts.say("a line")


@pytest.mark.parametrize("error", [BrokenPipeError(), RuntimeError("reentrant call")])
def test_a_signal_is_noted_though_it_cannot_be_answered(error, monkeypatch):
    monkeypatch.setattr(sys, "stdout", LostOutput(error))
    before = signal.getsignal(signal.SIGINT)
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.signal == signal.SIGINT
        assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.usefixtures("in_a_terminal")
def test_a_closed_terminal_is_noted_as_often_as_it_tells():
    before = signal.getsignal(signal.SIGHUP)
    with Interrupt() as interrupt:
        for number in (signal.SIGHUP, signal.SIGHUP):  # by the shell and by the system
            signal.raise_signal(number)
        assert interrupt.signal == signal.SIGHUP
    assert signal.getsignal(signal.SIGHUP) == before


def test_nohup_stays_in_force():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGHUP)
            assert interrupt.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_failure_of_the_lead_reaches_all_even_without_a_message(monkeypatch):
    def fail() -> None:
        raise OSError

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts.multihost_utils, "broadcast_one_to_all", lambda text: text)
    with pytest.raises(ConfigError, match="OSError"):
        hosts.on_lead(fail)


def test_an_unexpected_failure_of_the_lead_reaches_all_too(monkeypatch):
    def fail() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    sent = []
    monkeypatch.setattr(
        hosts.multihost_utils, "broadcast_one_to_all", lambda text: (sent.append(text), text)[1]
    )
    with pytest.raises(RuntimeError, match="a bug"):
        hosts.on_lead(fail)
    monkeypatch.setattr(hosts, "is_lead", lambda: False)
    monkeypatch.setattr(hosts.multihost_utils, "broadcast_one_to_all", lambda _: sent[0])
    with pytest.raises(ConfigError, match=r"^the lead process failed: RuntimeError\('a bug'\)$"):
        hosts.on_lead(fail)


FAILING = """
import sys
from dit_moe.config import command_line
from dit_moe.devices import hosts
command_line._PATIENCE = 1.0
port, process = sys.argv[1:]

def main():
    hosts.join(f"localhost:{port}", 2, int(process))
    from jax.experimental import multihost_utils
    multihost_utils.sync_global_devices("start")
    if hosts.is_lead():
        raise RuntimeError("a bug")
    multihost_utils.sync_global_devices("never")
    return 0

command_line.end(main)
"""


def test_a_failure_of_the_lead_alone_ends_the_others():
    port = free_port()
    results = run_together(
        2,
        lambda process_id: [sys.executable, "-c", FAILING, port, process_id],
        {**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=90,  # JAX alone would have them wait for 300 seconds
    )
    (lead, _, error), (other, _, _) = results
    assert lead == 1
    assert error.endswith("RuntimeError: a bug\n")
    assert other != 0


def test_an_address_without_a_port():
    with pytest.raises(ConfigError, match=r"coordinator_address is 'node0'; allowed: HOST:PORT"):
        hosts.join("node0", 2, 0)


def test_processes_that_cannot_find_each_other():
    command = [sys.executable, "train.py", "--config", "configs/digits.py", "--workdir", "unused"]
    result = subprocess.run(
        [*command, "--num_processes", "2"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: the processes of this run did not find each other")
    assert len(result.stderr.splitlines()) == 1
    assert not (ROOT / "unused").exists()
