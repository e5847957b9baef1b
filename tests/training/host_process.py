"""One process of a distributed run: CONFIG_JSON WORKDIR PORT NUM_PROCESSES ID SIGNALLED STEP.

The process whose number is SIGNALLED gets a SIGTERM as it draws the batch of STEP.
"""

import os
import signal
import sys
from pathlib import Path

from dit_moe.config.command_line import end
from dit_moe.config.files import load_json
from dit_moe.devices import hosts
from dit_moe.training import loop, session


def main() -> int:
    config, workdir, port, num_processes, process_id, signalled, step = sys.argv[1:]
    hosts.join(f"localhost:{port}", int(num_processes), int(process_id))
    original = session.device_batches

    def batches(*arguments):
        for number, item in enumerate(original(*arguments), start=1):
            if number == int(step) and process_id == signalled:
                os.kill(os.getpid(), signal.SIGTERM)
            yield item

    session.device_batches = batches
    stopped_by = loop.train(load_json(Path(config)), Path(workdir))
    hosts.say(f"stopped by {stopped_by}")
    return 128 + (stopped_by or 0)


if __name__ == "__main__":
    end(main)
