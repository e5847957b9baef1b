"""Checkpoints of a run: atomic, written in the background, readable item by item."""

from pathlib import Path
from typing import Any

import absl.logging
import jax
import orbax.checkpoint as ocp

from dit_moe.config import ConfigError
from dit_moe.nn.parameters import Parameters
from dit_moe.training.state import TrainState

# Orbax warns of what is meant to be so, such as a folder opened for reading only.
absl.logging.set_verbosity(absl.logging.ERROR)

_ITEMS = ("step", "parameters", "ema", "optimizer")


class Checkpoints:
    """The `checkpoints` folder of a run. Use as a context: leaving it waits for open saves.

    Args:
      workdir: the run folder.
      keep: how many checkpoints to keep; None opens the folder for reading only, which is safe
        while another process writes to it.
    """

    def __init__(self, workdir: Path, keep: int | None = None):
        if keep is None:
            options = ocp.CheckpointManagerOptions(read_only=True, create=False)
        else:
            options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self.folder = (workdir / "checkpoints").absolute()
        handlers = {name: ocp.StandardCheckpointHandler() for name in _ITEMS}
        self._manager = ocp.CheckpointManager(
            self.folder, item_names=_ITEMS, item_handlers=handlers, options=options
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Starts saving the state under its step; a step that exists is left alone."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        items = {name: ocp.args.StandardSave({"value": getattr(state, name)}) for name in _ITEMS}
        self._manager.save(step, args=ocp.args.Composite(**items))

    def wait(self) -> None:
        """Returns when all saves are complete."""
        self._manager.wait_until_finished()

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Reads a state with the structure and shardings of `like` (abstract or real)."""
        items = {
            name: ocp.args.StandardRestore({"value": _abstract(getattr(like, name))})
            for name in _ITEMS
        }
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        return TrainState(**{name: restored[name]["value"] for name in _ITEMS})

    def restore_parameters(
        self, step: int, like: dict[str, jax.ShapeDtypeStruct], ema: bool
    ) -> Parameters:
        """Reads only the parameters, or only their moving average, onto the first local device.

        Raises:
          ConfigError: the checkpoint does not hold parameters of these shapes.
        """
        name = "ema" if ema else "parameters"
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = {
            path: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=here) for path, p in like.items()
        }
        stored = self._manager.item_metadata(step)[name]["value"]
        wrong = [p for p in {**like, **stored} if not _same_shape(like.get(p), stored.get(p))]
        if wrong:
            raise ConfigError(
                f"checkpoint {step} in {self.folder} does not fit config.json: {wrong[0]} and "
                f"{len(wrong) - 1} more parameters differ in shape"
            )
        arguments = {name: ocp.args.StandardRestore({"value": target})}
        return self._manager.restore(step, args=ocp.args.Composite(**arguments))[name]["value"]


def _same_shape(a: Any, b: Any) -> bool:
    return a is not None and b is not None and tuple(a.shape) == tuple(b.shape)


def _abstract(tree):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), tree)
