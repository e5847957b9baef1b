"""What one worker does: it takes tasks from the queue until none is left to take."""

import traceback
from collections.abc import Callable, Mapping
from typing import Any

from dit_moe.storage.errors import ConfigError
from dit_moe.sweep.queue import Outcome, Queue

Job = Callable[[str], Mapping[str, Any] | None]
"""From the name of a task to its result; None where it was asked to stop before its end."""


def work(queue: Queue, job: Job, say: Callable[[str], None]) -> bool:
    """Does tasks until all are over or with other workers.

    One that raises is marked as failed with its sentence, and the next one is taken.

    Args:
      queue: what there is to do; any number of workers may share it.
      job: does one of them. A task whose worker was killed is given to it again.
      say: is told the sentence of one that fails.

    Returns:
      Whether it came to the end: False where a job was asked to stop.

    Raises:
      OSError: the queue cannot be written.
      ConfigError: an outcome in it is damaged.
    """
    while True:
        with queue.take() as name:
            if name is None:
                return True
            outcome = _done(name, job, say)
            if outcome is None:
                return False
            queue.finish(name, outcome)


def _done(name: str, job: Job, say: Callable[[str], None]) -> Outcome | None:
    try:
        result = job(name)
    except (ConfigError, OSError) as error:
        sentence = str(error)
    except Exception as error:  # no user can mend it, and the others shall have their turn
        traceback.print_exc()
        sentence = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    else:
        return None if result is None else Outcome(result=dict(result))
    say(f"error: {name}: {sentence}")
    return Outcome(failure=sentence or "it failed without a word")
