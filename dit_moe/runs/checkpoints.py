"""Checkpoints of a run: atomic, verified, written in the background, readable item by item.

Neither damage to a checkpoint nor a full disk loses the others. In a distributed run, all processes
make the same calls.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from dit_moe.config import ConfigError
from dit_moe.config.rules import listing
from dit_moe.devices import hosts
from dit_moe.models.parameters import Parameters
from dit_moe.runs import about
from dit_moe.runs.fingerprint import fingerprints
from dit_moe.runs.judged import best, read_judgements
from dit_moe.runs.state import TrainState
from dit_moe.storage.files import absolute

_ITEMS = ("step", "parameters", "ema", "optimizer", "tracks")
_ABOUT, _ABOUT_FILE = "about", "about.json"


class TrainingError(RuntimeError):
    """Training cannot go on; the message is one sentence for the user."""


class DamageError(ConfigError):
    """Files of a checkpoint are missing, unreadable or changed."""


@dataclasses.dataclass
class _Best(policies.PreservationPolicy):
    """Keeps the best of those that were judged."""

    workdir: epath.Path

    def should_preserve(
        self,
        checkpoints: Sequence[policies.PolicyCheckpointInfo],
        *,
        context: policies.PreservationContext,
    ) -> list[bool]:
        del context
        found = best(read_judgements(self.workdir), [info.step for info in checkpoints])
        return [found is not None and info.step == found.step for info in checkpoints]


class Checkpoints:
    """The `checkpoints` folder of a run. Use as a context: leaving it waits for open saves.

    Args:
      workdir: the run folder; what `etils.epath` can open, such as gs:// addresses, too.
      keep: how many of the newest checkpoints to keep, beside the best that was judged; None opens
        the folder for reading only, which is safe while another process writes to it.
      keep_every: keeps checkpoints whose step is a multiple of it, too; 0: no others.

    Raises:
      OSError: the folder cannot be made or written.
      ConfigError: what tells the best one is damaged.
    """

    def __init__(self, workdir: epath.PathLike, keep: int | None = None, keep_every: int = 0):
        self._workdir = absolute(workdir)
        self.folder = self._workdir / "checkpoints"
        if keep is None:
            self._options = ocp.CheckpointManagerOptions(read_only=True, create=False)
        else:
            read_judgements(self._workdir)  # not found damaged only when the oldest is removed
            kept = [policies.LatestN(keep), _Best(self._workdir)]
            kept += [policies.EveryNSteps(keep_every)] if keep_every else []
            policy = policies.AnyPreservationPolicy(kept)
            self._options = ocp.CheckpointManagerOptions(preservation_policy=policy)
        self._saving: int | None = None
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        handlers = {
            **{name: ocp.StandardCheckpointHandler() for name in _ITEMS},
            _ABOUT: ocp.JsonCheckpointHandler(_ABOUT_FILE),
        }
        return ocp.CheckpointManager(
            self.folder, item_names=tuple(handlers), item_handlers=handlers, options=self._options
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.wait()
        self._manager.close()

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, complete or still being saved, or None."""
        return self._manager.latest_step()

    def find(self, which: str) -> int:
        """The step of the checkpoint that is meant.

        Args:
          which: "newest", "best" of those that were judged, or the number of a step.

        Raises:
          ConfigError: there is no such checkpoint, or what tells the best one is damaged.
        """
        steps = sorted(self._manager.all_steps())
        where = f"workdir {str(self._workdir)!r}"
        if not steps:
            raise ConfigError(f"{where} has no checkpoint yet; train it first")
        if which == "newest":
            return steps[-1]
        found = best(read_judgements(self._workdir), steps)
        if which == "best" and found is not None:
            return found.step
        if which.isdecimal() and int(which) in steps:
            return int(which)
        allowed = [] if found is None else ["best"]
        raise ConfigError(
            f"checkpoint is {which!r}, which {where} does not have; allowed: "
            f"{listing(['newest', *allowed, *steps])}"
        )

    def digests(self) -> dict[int, str]:
        """The steps of the checkpoints, each with a digest of what it says it holds; one that is
        damaged, or being removed, is left out."""
        found = {}
        for step in self._manager.all_steps():
            with contextlib.suppress(DamageError), self._reading(step):
                arrays = about.read(self._about(step), self._name(step))
                told = json.dumps(sorted(arrays.items())).encode()
                found[step] = hashlib.sha256(told).hexdigest()
        return found

    def newest_on_disk(self) -> int | None:
        """The step of the newest checkpoint that is complete and still there, or None.

        Raises:
          TrainingError: as `wait`.
        """
        self.wait()
        if not self.folder.exists():
            return None
        self._manager.reload()
        return self.latest_step()

    def save(self, state: TrainState) -> None:
        """Starts saving the state under its step; a step that exists is left alone.

        A save that fails, now or later in the background, is printed; later ones remove what it
        left half-written.

        Raises:
          TrainingError: this save or the one before failed, and there is no checkpoint or there are
            several processes (which it leaves out of step with each other).
        """
        self.wait()
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        if hosts.is_lead():
            self._remove_leftovers()
        stored = _items(state)
        items: dict[str, Any] = {
            name: ocp.args.StandardSave({"value": tree}) for name, tree in stored.items()
        }
        items[_ABOUT] = ocp.args.JsonSave(about.describe(about.measure(stored)))
        self._saving = step
        try:
            self._manager.save(step, args=ocp.args.Composite(**items))
        except Exception as error:
            self._give_up(error)

    def _remove_leftovers(self) -> None:
        """Removes what saves left that were interrupted or failed.

        Orbax's own cleaning, as it starts, would compete with the threads of a failed save.
        """
        for leftover in self.folder.glob("*.orbax-checkpoint-tmp"):
            with contextlib.suppress(OSError):
                leftover.rmtree()

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
        failure = f"checkpoint {self._saving} could not be saved in {self.folder}: {brief(error)}"
        if jax.process_count() > 1:
            raise TrainingError(failure) from error
        # Orbax would repeat the failure at the next save; a new manager does not.
        with contextlib.suppress(Exception):
            self._manager.close()
        self._manager = self._open()
        if self.latest_step() is None:
            raise TrainingError(failure) from error
        hosts.say(f"{failure}; training goes on, the newest is {self.latest_step()}")

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Reads a state with the structure and shardings of `like` (abstract or real).

        Raises:
          DamageError: the checkpoint is damaged, as one of the processes sees it.
          ConfigError: it is of another layout or holds something else.
        """
        target = {name: _abstract(tree) for name, tree in _items(like).items()}
        arrays, items, error = None, None, None
        try:
            arrays, items = self._read(step, target)
        except ConfigError as raised:
            error = raised
        if hosts.any_process(error is not None):
            raise error or DamageError(f"{self._name(step)} cannot be read by another process")
        assert arrays is not None
        assert items is not None
        self._verify(step, arrays, items)
        return TrainState(**items)

    def restore_newest(self, like: TrainState) -> TrainState | None:
        """Reads the newest checkpoint that can be read, or None if there are no checkpoints.

        Newer ones that are damaged are printed and renamed to `damaged-STEP`, out of the way.

        Raises:
          ConfigError: there are checkpoints, but none can be read, or one is of another layout or
            holds something else; all stay where they are.
        """
        damaged: dict[int, DamageError] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = self.restore(step, like)
            except DamageError as error:
                damaged[step] = error
                continue
            if damaged:
                hosts.on_lead(lambda: self._move_aside(damaged))
                self._manager.reload()
            return state
        if damaged:
            newest, error = next(iter(damaged.items()))
            others = ", ".join(str(step) for step in damaged if step != newest)
            raise ConfigError(
                f"{error}; nor can {others} be read" if others else f"{error}; there is no other"
            )
        return None

    def _move_aside(self, damaged: dict[int, DamageError]) -> None:
        for step, error in damaged.items():
            names = itertools.chain(
                [f"damaged-{step}"], (f"damaged-{step}-{i}" for i in itertools.count(2))
            )
            target = next(self.folder / name for name in names if not (self.folder / name).exists())
            (self.folder / str(step)).rename(target)
            hosts.say(f"{error}; it is now {target}.")

    def restore_parameters(
        self, step: int, like: Mapping[str, jax.ShapeDtypeStruct], ema: bool
    ) -> Parameters:
        """Reads only the parameters, or only their moving average, to where `like` has them.

        Raises:
          DamageError: what is read is damaged.
          ConfigError: the checkpoint is of another layout, or does not hold parameters of these
            shapes.
        """
        name = "ema" if ema else "parameters"
        arrays, items = self._read(step, {name: dict(like)})
        self._verify(step, arrays, items)
        return items[name]

    def restore_each(
        self, step: int, like: Mapping[str, jax.ShapeDtypeStruct], ema: bool
    ) -> Iterator[tuple[str, np.ndarray]]:
        """The same one after another, sorted by path, as arrays of NumPy: one is held at a time.

        Raises:
          DamageError, ConfigError: as `restore_parameters`.
        """
        name = "ema" if ema else "parameters"
        arrays = self._told(step, {name: dict(like)})
        handler = ocp.PyTreeCheckpointHandler()
        with contextlib.closing(handler):
            for path in sorted(like):
                item = {"value": {path: 0}}
                as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
                with self._reading(step):
                    arguments = ocp.args.PyTreeRestore(
                        item=item, restore_args={"value": {path: as_numpy}}, partial_restore=True
                    )
                    array = handler.restore(self.folder / str(step) / name, args=arguments)
                found = {name: array["value"]}
                self._verify(step, arrays, found)
                yield path, found[name][path]

    def _read(
        self, step: int, target: dict[str, Any]
    ) -> tuple[dict[str, about.Array], dict[str, Any]]:
        """What the checkpoint says it holds, and the items of `target` as read."""
        folder, arrays = self.folder / str(step), self._told(step, target)
        # The handler alone waits for no other process, which may have failed to read.
        handler = ocp.StandardCheckpointHandler()
        with self._reading(step), contextlib.closing(handler):
            items = {
                name: handler.restore(folder / name, args=ocp.args.StandardRestore({"value": tree}))
                for name, tree in target.items()
            }
        return arrays, {name: item["value"] for name, item in items.items()}

    def _told(self, step: int, target: dict[str, Any]) -> dict[str, about.Array]:
        """What the checkpoint says it holds, which the items of `target` fit."""
        with self._reading(step):
            arrays = about.read(self._about(step), self._name(step))
        if "optimizer" in target and not any(path.startswith("optimizer/") for path in arrays):
            raise ConfigError(
                f"{self._name(step)} was converted and holds no optimizer to go on with; allowed: "
                "a new --workdir with --init_from this one"
            )
        wrong = about.misfits(arrays, target)
        if wrong:
            raise ConfigError(
                f"{self._name(step)} does not fit config.json: {wrong[0]} and "
                f"{len(wrong) - 1} more arrays differ in shape or dtype"
            )
        return arrays

    def _verify(self, step: int, arrays: dict[str, about.Array], items: dict[str, Any]) -> None:
        found = fingerprints(items)
        changed = [path for path in found if found[path] != arrays[path].fingerprint]
        if changed:
            raise DamageError(
                f"{self._name(step)} cannot be used, it is damaged ({changed[0]} and "
                f"{len(changed) - 1} more arrays are not what was saved)"
            )

    def _about(self, step: int) -> epath.Path:
        return self.folder / str(step) / _ABOUT / _ABOUT_FILE

    def _name(self, step: int) -> str:
        return f"checkpoint {step} in {self.folder}"

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Turns whatever the files' damage leads to into a DamageError."""
        try:
            yield
        except (ConfigError, MemoryError, jax.errors.JaxRuntimeError):
            raise  # the device's memory, for one: no fault of the files
        except Exception as error:
            raise DamageError(
                f"{self._name(step)} cannot be read, perhaps it is damaged ({brief(error)})"
            ) from error


def _items(state: TrainState) -> dict[str, Any]:
    """What is stored, by name; a run without tracks has no such item."""
    trees = {name: getattr(state, name) for name in _ITEMS}
    return {name: tree for name, tree in trees.items() if jax.tree.leaves(tree)}


def brief(error: Exception) -> str:
    """An error of Orbax in one line without paths, for a sentence that names the folder."""
    without_paths = re.sub(r'\s*"[^"]*"', "", f"{type(error).__name__}: {error}")
    # What the system says comes last, after what each layer of TensorStore was doing.
    return textwrap.shorten(without_paths, 240, placeholder=" ...")


def on_one_device(like: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
    """The same shapes, to be read onto the first local device."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return {path: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=here) for path, p in like.items()}


def _abstract(tree):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), tree)
