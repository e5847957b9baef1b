"""The queue: every task once, whoever is killed; what fails keeps no other from its turn."""

import itertools
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dit_moe.config import ConfigError
from dit_moe.sweep.queue import Outcome, Queue
from dit_moe.sweep.worker import work

ROOT = Path(__file__).parents[2]
TASKS, WORKERS, KILLS = 200, 4, 20


def start(folder: Path) -> subprocess.Popen:
    line = [sys.executable, "-m", "tests.sweep.queue_process", str(folder), str(TASKS)]
    return subprocess.Popen(line, cwd=ROOT)


def test_every_task_is_done_once_whoever_is_killed(tmp_path):
    random.seed(0)
    queue = Queue(tmp_path / "queue", [str(i) for i in range(TASKS)])
    workers = [start(tmp_path) for _ in range(WORKERS)]
    seen: dict[str, bytes] = {}
    for kill in range(KILLS):
        # The next kill comes after something was begun since the last.
        before = len(begun(tmp_path))
        wait(lambda before=before: len(begun(tmp_path)) > before or over(queue))
        assert not over(queue), f"all was done after {kill} kills: nothing is tested"
        time.sleep(random.uniform(0, 0.06))
        victim = random.randrange(WORKERS)
        workers[victim].kill()
        workers[victim].wait()
        workers[victim] = start(tmp_path)
        for path in (tmp_path / "queue").glob("*.json"):
            assert seen.setdefault(path.name, path.read_bytes()) == path.read_bytes()
    assert [worker.wait() for worker in workers] == [0] * WORKERS
    assert [queue.outcome(name) for name in queue.names] == [
        Outcome(result={"number": i}) for i in range(TASKS)
    ]
    assert not (tmp_path / "two_at_once").exists()
    # A task that was done is never begun again: only kills make a second time.
    assert TASKS <= len(begun(tmp_path)) <= TASKS + KILLS


def begun(folder: Path) -> list[str]:
    texts = [path.read_text() for path in folder.glob("*.own")]
    return [*itertools.chain(*(text.splitlines() for text in texts))]


def over(queue: Queue) -> bool:
    return all(queue.outcome(name) for name in queue.names)


def wait(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_task_that_fails_is_marked_and_the_next_is_taken(tmp_path, capsys):
    def job(name):
        if name == "config":
            raise ConfigError("steps is 0")
        if name == "bug":
            raise RuntimeError("a bug")
        return {"value": 1.5, "nothing": None}

    told = []
    queue = Queue(tmp_path, ["config", "bug", "fine"])
    assert work(queue, job, told.append)
    assert queue.outcome("config") == Outcome(failure="steps is 0")
    assert queue.outcome("bug") == Outcome(failure="RuntimeError: a bug")
    assert queue.outcome("fine") == Outcome(result={"value": 1.5, "nothing": None})
    assert told == ["error: config: steps is 0", "error: bug: RuntimeError: a bug"]
    assert "Traceback" in capsys.readouterr().err

    again = []
    assert work(queue, again.append, told.append)  # nothing is left to take
    queue.forget_failures()
    assert not work(queue, again.append, told.append)  # the first is asked to stop
    assert again == ["config"]
    assert queue.outcome("config") is None
    assert queue.outcome("fine") is not None


def test_a_task_that_ends_its_worker_does_not_block_the_others(tmp_path):
    queue = Queue(tmp_path, ["deadly", "fine"])
    with queue.take() as name:
        assert name == "deadly"  # and is left without an outcome, as after a kill
    with queue.take() as name:
        assert name == "fine"
    with queue.take() as first, queue.take() as second, queue.take() as none:
        assert [first, second, none] == ["deadly", "fine", None]


def test_a_damaged_outcome_is_told(tmp_path):
    queue = Queue(tmp_path, ["a"])
    (tmp_path / "a.json").write_text('{"result": {"loss": "low"}}')
    with pytest.raises(ConfigError, match=r"a\.json cannot be read: result\.loss.*done again"):
        work(queue, lambda name: {}, print)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ConfigError, match="either result or failure"):
        queue.outcome("a")


def test_object_stores_have_no_locks():
    with pytest.raises(ConfigError, match=r"output is 'gs:/.*no locks"):
        Queue("gs://bucket/sweep", ["a"])
