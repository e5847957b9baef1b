"""Checkpoints of a run: atomic, written in the background, readable item by item.

Neither damage to a checkpoint nor a full disk loses the others.
"""

import contextlib
import itertools
import logging
import re
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import absl.logging
import jax
import orbax.checkpoint as ocp
from tqdm import tqdm

from dit_moe.config import ConfigError
from dit_moe.nn.parameters import Parameters
from dit_moe.training.state import TrainState

# Failures are told here in a sentence. Orbax and its event loops, which it closes while reads and
# writes are under way, would add pages of tracebacks, and warnings of what is meant to be so.
absl.logging.set_verbosity(absl.logging.FATAL)
logging.getLogger("asyncio").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


def _drop_leftovers(unraisable: Any, hook: Callable[[Any], object] = sys.unraisablehook) -> None:
    dropped = "_read_array" in str(unraisable.object)
    if not dropped and str(unraisable.exc_value) != "Event loop is closed":
        hook(unraisable)


sys.unraisablehook = _drop_leftovers

_ITEMS = ("step", "parameters", "ema", "optimizer")


class TrainingError(RuntimeError):
    """Training cannot go on; the message is one sentence for the user."""


class Checkpoints:
    """The `checkpoints` folder of a run. Use as a context: leaving it waits for open saves.

    Args:
      workdir: the run folder.
      keep: how many checkpoints to keep; None opens the folder for reading only, which is safe
        while another process writes to it.

    Raises:
      OSError: the folder cannot be made or written.
    """

    def __init__(self, workdir: Path, keep: int | None = None):
        if keep is None:
            self._options = ocp.CheckpointManagerOptions(read_only=True, create=False)
        else:
            self._options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        self.folder = (workdir / "checkpoints").absolute()
        self._saving: int | None = None
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        handlers = {name: ocp.StandardCheckpointHandler() for name in _ITEMS}
        return ocp.CheckpointManager(
            self.folder, item_names=_ITEMS, item_handlers=handlers, options=self._options
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.wait()
        self._manager.close()

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, complete or still being saved, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Starts saving the state under its step; a step that exists is left alone.

        A save that fails, now or later in the background, is printed; later ones remove what it
        left half-written.

        Raises:
          TrainingError: this save or the one before failed and there is no checkpoint.
        """
        self.wait()
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        # What was interrupted or failed. Orbax's own cleaning, as it starts, would compete with the
        # threads of a save that just failed.
        for leftover in self.folder.glob("*.orbax-checkpoint-tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        items = {name: ocp.args.StandardSave({"value": getattr(state, name)}) for name in _ITEMS}
        self._saving = step
        try:
            self._manager.save(step, args=ocp.args.Composite(**items))
        except Exception as error:
            self._give_up(error)

    def wait(self) -> None:
        """Returns when all saves are complete or have failed; raises what `save` raises."""
        try:
            self._manager.wait_until_finished()
        # A full disk is an OSError or a ValueError, depending on which file met it.
        except Exception as error:
            self._give_up(error)

    def poll(self) -> None:
        """Prints the failure of a save that has ended, without waiting for one that has not."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    def _give_up(self, error: Exception) -> None:
        failure = f"checkpoint {self._saving} could not be saved in {self.folder}: {_brief(error)}"
        # Orbax would repeat the failure at the next save; a new manager does not.
        with contextlib.suppress(Exception):
            self._manager.close()
        self._manager = self._open()
        if self.latest_step() is None:
            raise TrainingError(failure) from error
        tqdm.write(f"{failure}; training goes on, the newest is {self.latest_step()}")

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Reads a state with the structure and shardings of `like` (abstract or real).

        Raises:
          ConfigError: the checkpoint is damaged or holds something else.
        """
        items = {
            name: ocp.args.StandardRestore({"value": _abstract(getattr(like, name))})
            for name in _ITEMS
        }
        with self._reading(step):
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
            return TrainState(**{name: restored[name]["value"] for name in _ITEMS})

    def restore_newest(self, like: TrainState) -> TrainState | None:
        """Reads the newest checkpoint that can be read, or None if there are no checkpoints.

        Newer ones that are damaged are printed and renamed to `damaged-STEP`, out of the way.

        Raises:
          ConfigError: there are checkpoints, but none can be read; they stay where they are.
        """
        damaged: dict[int, ConfigError] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = self.restore(step, like)
            except ConfigError as error:
                damaged[step] = error
                continue
            for bad, error in damaged.items():
                print(f"{error}; it is now {self._move_aside(bad)}.")
            self._manager.reload()
            return state
        if damaged:
            newest, error = next(iter(damaged.items()))
            others = ", ".join(str(step) for step in damaged if step != newest)
            raise ConfigError(
                f"{error}; nor can {others} be read" if others else f"{error}; there is no other"
            )
        return None

    def _move_aside(self, step: int) -> Path:
        names = itertools.chain(
            [f"damaged-{step}"], (f"damaged-{step}-{i}" for i in itertools.count(2))
        )
        target = next(self.folder / name for name in names if not (self.folder / name).exists())
        return (self.folder / str(step)).rename(target)

    def restore_parameters(
        self, step: int, like: dict[str, jax.ShapeDtypeStruct], ema: bool
    ) -> Parameters:
        """Reads only the parameters, or only their moving average, onto the first local device.

        Raises:
          ConfigError: the checkpoint is damaged, or does not hold parameters of these shapes.
        """
        name = "ema" if ema else "parameters"
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = {
            path: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=here) for path, p in like.items()
        }
        with self._reading(step):
            stored = self._manager.item_metadata(step)[name]["value"]
        wrong = [p for p in {**like, **stored} if not _same_shape(like.get(p), stored.get(p))]
        if wrong:
            raise ConfigError(
                f"checkpoint {step} in {self.folder} does not fit config.json: {wrong[0]} and "
                f"{len(wrong) - 1} more parameters differ in shape"
            )
        arguments = {name: ocp.args.StandardRestore({"value": target})}
        with self._reading(step):
            return self._manager.restore(step, args=ocp.args.Composite(**arguments))[name]["value"]

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Turns whatever the files' damage leads to into a ConfigError."""
        try:
            yield
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise  # the device's memory, for one: no fault of the files
        except Exception as error:
            raise ConfigError(
                f"checkpoint {step} in {self.folder} cannot be read, perhaps it is damaged "
                f"({_brief(error)})"
            ) from error


def _brief(error: Exception) -> str:
    without_paths = re.sub(r'\s*"[^"]*"', "", f"{type(error).__name__}: {error}")
    return textwrap.shorten(without_paths, 160, placeholder=" ...")


def _same_shape(a: Any, b: Any) -> bool:
    return a is not None and b is not None and tuple(a.shape) == tuple(b.shape)


def _abstract(tree):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), tree)
