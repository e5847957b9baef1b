"""A worker whose tasks do next to nothing: `test_queue.py` starts and kills it."""

import fcntl
import sys
import time
from pathlib import Path

from dit_moe.sweep.queue import Queue
from dit_moe.sweep.worker import work


def main(folder: Path, count: int) -> None:
    def job(name: str) -> dict[str, float | None]:
        with (folder / f"{name}.own").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                (folder / "two_at_once").touch()
            file.write("begun\n")
            file.flush()
            time.sleep(0.05)
        return {"number": int(name)}

    work(Queue(folder / "queue", [str(i) for i in range(count)]), job, print)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
