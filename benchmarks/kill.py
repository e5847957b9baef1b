"""Kills a training run at random moments and resumes it: is anything lost?

Every start of train.py saves after each step and is ended by SIGKILL at a random moment: one in
five as it starts, the others within two seconds of its first save, most of them during a save. The
next start must go on from the newest checkpoint that was complete. In the end the run must be
equal, bit for bit, to one that was never disturbed. Exit code 1 if not.
"""

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
# A checkpoint takes about as long as a step, so that each save meets the next step.
SETTINGS = {
    "model.width": 256,
    "train.batch_size": 8,
    "train.schedule": "constant",
    "train.warmup_steps": 0,
    "train.checkpoint_every": 1,
    "train.log_every": 1,
    "train.sample_every": 0,
}
MORE_STEPS = 5
PATIENCE = 600.0  # seconds


class Run:
    """A run folder and the process that trains in it."""

    def __init__(self, workdir: Path, cache: Path):
        self.checkpoints = workdir / "checkpoints"
        self._command = [sys.executable, str(ROOT / "train.py"), "--workdir", str(workdir)]
        self._command += ["--config", f"{ROOT}/configs/digits.py:dit"]
        self._command += [f"--config.{name}={value}" for name, value in SETTINGS.items()]
        self._environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self._log = workdir.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, steps: int) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._command, f"--config.train.steps={steps}"],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                cwd=ROOT,
            )

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def finish(self, steps: int) -> None:
        self.start(steps)
        assert self._process is not None
        if self._process.wait(PATIENCE) != 0:
            raise SystemExit(f"train.py failed:\n{self.output()}")

    def wait_for_save(self) -> None:
        """Returns when the process begins its first save."""
        before = self.entries()
        deadline = time.monotonic() + PATIENCE
        while self.entries() <= before:
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"train.py did not save:\n{self.output()}")
            time.sleep(0.01)

    def entries(self) -> set[str]:
        return set(os.listdir(self.checkpoints)) if self.checkpoints.is_dir() else set()

    def newest(self) -> int:
        """The newest complete checkpoint; 0 without one."""
        return max((int(name) for name in self.entries() if name.isdigit()), default=0)

    def resumed_from(self) -> int | None:
        """The step that the process says it goes on from; None if it has not said so yet."""
        found = re.search(r"from step ([\d,]+)\.", self.output())
        return int(found[1].replace(",", "")) if found else None

    def output(self) -> str:
        return self._log.read_text(errors="replace")


def same_bits(folders: list[Path], step: int) -> bool:
    """Whether two runs have the same state at a step."""
    import jax

    from dit_moe.config.files import load_json
    from dit_moe.devices.mesh import build_mesh
    from dit_moe.runs.checkpoints import Checkpoints
    from dit_moe.runs.state import abstract_state

    states = []
    for folder in folders:
        config = load_json(folder / "config.json")
        like = abstract_state(
            config.model, config.train, build_mesh(config.mesh, jax.devices()[:1])
        )
        with Checkpoints(folder) as checkpoints:
            states.append(jax.device_get(jax.tree.leaves(checkpoints.restore(step, like))))
    return all(a.tobytes() == b.tobytes() for a, b in zip(*states, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run = Run(folder / "killed", folder / "cache")
        failures = saving = expected = 0
        print("kill  after start  resumed from  newest complete  save under way")
        for number in range(arguments.kills):
            begin = time.monotonic()
            run.start(10**6)
            if number % 5 == 4:
                time.sleep(rng.uniform(0, 8))
            else:
                run.wait_for_save()
                time.sleep(rng.uniform(0, 2))
            run.kill()
            seconds = time.monotonic() - begin
            resumed = run.resumed_from()
            under_way = any(name.endswith("tmp") for name in run.entries())
            saving += under_way
            newest = run.newest()
            wrong = resumed not in (None, expected or None) or newest < expected
            failures += wrong
            expected = newest
            print(
                f"{number + 1:4d} {seconds:10.1f} s {resumed or '-':>13} {expected:16d}  "
                f"{'yes' if under_way else 'no':>14}{'  WRONG STEP' if wrong else ''}",
                flush=True,
            )
        steps = expected + MORE_STEPS
        run.finish(steps)
        failures += run.resumed_from() != (expected or None)
        undisturbed = Run(folder / "undisturbed", folder / "cache")
        undisturbed.finish(steps)
        damaged = sum(name.startswith("damaged") for name in run.entries())
        equal = same_bits([folder / "killed", folder / "undisturbed"], steps)

    good = equal and not failures and not damaged
    print(
        f"{arguments.kills} kills, {saving} of them during a save: {failures} starts from another "
        f"step than the newest complete checkpoint, {damaged} damaged checkpoints; after {steps} "
        f"steps {'equal' if equal else 'NOT EQUAL'}, bit for bit, to an undisturbed run: "
        f"{'passed' if good else 'FAILED'}"
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
