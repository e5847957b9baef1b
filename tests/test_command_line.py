import io
import os
import pty
import subprocess
import sys
import time

import pytest

from dit_moe.config import ConfigError
from dit_moe.config.command_line import command_parser, numbers, run_command


def fails(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "settings", "code", "told"),
    [
        (lambda: None, {}, 0, ""),
        (lambda: 143, {}, 143, ""),
        (fails(ConfigError("steps is 0")), {}, 2, "error: steps is 0\n"),
        (fails(OSError("disk full")), {}, 2, "error: disk full\n"),
        (fails(KeyboardInterrupt()), {}, 130, "\nStopped. Nothing is half-written.\n"),
        (
            fails(KeyboardInterrupt()),
            {"resumes": True},
            130,
            "\nStopped. Give the same command again to go on.\n",
        ),
    ],
)
def test_how_a_command_ends(capsys, work, settings, code, told):
    assert run_command(work, **settings) == code
    assert capsys.readouterr().err == told


def test_names_that_are_not_utf8_can_be_told(capsys):
    assert run_command(lambda: print("caf\udce9")) == 0
    assert capsys.readouterr().out == "caf\\udce9\n"


def test_errors_of_the_program_are_not_the_users(capsys):
    with pytest.raises(RuntimeError, match="a bug"):
        run_command(fails(RuntimeError("a bug")))
    assert run_command(fails(RuntimeError("torn")), RuntimeError) == 2
    assert capsys.readouterr().err == "error: torn\n"


def test_names_that_the_terminal_cannot_write(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr("sys.stdout", terminal)
    assert run_command(lambda: print("Wrote \udcff.")) == 0
    terminal.flush()
    assert terminal.buffer.getvalue() == b"Wrote \\udcff.\n"


def refusal(capsys, *line):
    parser = command_parser("train.py", None, "")
    parser.add_argument("--output")
    with pytest.raises(SystemExit) as stop:
        parser.parse_known_args(line)
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_flag_whose_value_is_two_dashes(capsys):
    told = refusal(capsys, "--output=--")
    assert told == "train.py: error: argument --output is '--'; allowed: another value"


def test_a_file_to_extend_with_whose_name_is_too_long(capsys):
    assert "File name too long" in refusal(capsys, "--extend", "x" * 300)


def test_numbers():
    assert numbers("classes", "") == []
    assert numbers("classes", "3, 1,") == [3, 1]
    assert numbers("scale", "1.5,2", float) == [1.5, 2.0]
    with pytest.raises(ConfigError, match=r"classes is '1.5'; allowed: .* such as 0,1,2"):
        numbers("classes", "1.5")


ENDS = """
import contextlib, sys, threading
from dit_moe.config import command_line
command_line._PATIENCE = 0.2

def main():
    sys.stdin.readline()
    with contextlib.suppress(OSError):
        print("a line of which nobody hears")
    command_line.say_error("nor of this one")
    {work}

command_line.end(main)
"""


@pytest.mark.parametrize("code", [0, 2, 129])
def test_a_closed_terminal_changes_no_exit_code(code):
    try:
        ours, theirs = pty.openpty()
    except OSError as error:  # as in a bare chroot
        pytest.skip(f"there is no terminal to close: {error}")
    script = [sys.executable, "-c", ENDS.format(work=f"return {code}")]
    process = subprocess.Popen(script, stdin=subprocess.PIPE, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.close(ours)
    process.communicate(b"go on\n", timeout=60)
    assert process.returncode == code


@pytest.mark.parametrize(
    ("work", "code", "told"),
    [("return 2", 2, ""), ("raise RuntimeError('a bug')", 1, "RuntimeError: a bug")],
)
def test_threads_left_over_do_not_hold_up_a_failure(work, code, told):
    """As those of Orbax after a first save that failed."""
    leftover = "threading.Thread(target=threading.Event().wait).start(); "
    begin = time.monotonic()
    script = [sys.executable, "-c", ENDS.format(work=leftover + work)]
    result = subprocess.run(script, input="\n", capture_output=True, text=True, timeout=60)
    assert result.returncode == code
    assert told in result.stderr
    assert "nobody hears" in result.stdout
    assert time.monotonic() - begin < 30


QUIET = """
import logging, sys
from dit_moe.config import command_line

class Unraisable:
    object = "coroutine _read_array"
    exc_value = None

def main():
    import absl.logging
    assert absl.logging.get_verbosity() == absl.logging.FATAL
    assert logging.getLogger("asyncio").level == logging.CRITICAL
    sys.unraisablehook(Unraisable)
    return 0

command_line.end(main)
"""


def test_libraries_are_muted_in_the_process_of_a_command():
    script = [sys.executable, "-c", QUIET]
    result = subprocess.run(script, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
