"""Processes: those that make one distributed run, and those that are called as a user does."""

import os
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence

Command = Sequence[object]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def outside_of_make() -> dict[str, str]:
    """The environment of a user who calls make, whichever make runs the suite."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}


def run_together(
    num_processes: int,
    command: Callable[[int], Command],
    environment: Mapping[str, str],
    timeout: float,
) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of every process; none is left behind.

    Args:
      num_processes: how many are started, at once.
      command: from the number of a process to its command line.
      environment: of all.
      timeout: seconds for each to end.
    """
    processes = [
        subprocess.Popen(
            [str(part) for part in command(process_id)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process_id in range(num_processes)
    ]
    try:
        output = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *o) for p, o in zip(processes, output, strict=True)]
