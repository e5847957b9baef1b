"""Snapshots of a run's EMA tracks: the folder `ema_snapshots`, one per step, all kept.

All processes of a distributed run make the same calls, but for reading.
"""

from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from dit_moe.config import ConfigError
from dit_moe.devices import hosts
from dit_moe.models.parameters import Parameters
from dit_moe.runs.checkpoints import TrainingError, brief, on_one_device
from dit_moe.runs.ema_tracks import Tracks
from dit_moe.runs.fingerprint import fingerprints
from dit_moe.storage.files import absolute

_FINGERPRINTS = "fingerprints"

RECIPE_FILE = "post_hoc_ema.json"
"""In the run folder of an average that was made of snapshots."""


def snapshot_folder(workdir: epath.PathLike) -> epath.Path:
    """Where the snapshots of a run are."""
    return absolute(workdir) / "ema_snapshots"


def snapshot_steps(workdir: epath.PathLike) -> list[int]:
    """The steps of all complete snapshots, ascending; safe while another process adds some."""
    with _open(workdir, reading=True) as manager:
        return sorted(manager.all_steps())


def drop_snapshots_after(workdir: epath.PathLike, step: int) -> None:
    """Removes what a run that goes on from `step` will do again, and what is half-written.

    Raises:
      OSError: something cannot be removed.
    """

    def drop() -> None:
        for path in snapshot_folder(workdir).glob("*"):
            later = path.name.isdigit() and int(path.name) > step
            if later or path.name.endswith(".orbax-checkpoint-tmp"):
                path.rmtree()

    hosts.on_lead(drop)


def save_snapshot(workdir: epath.PathLike, step: int, tracks: Tracks) -> None:
    """Writes the tracks, whole or not at all, and returns when they are on disk.

    A failure is printed and costs no training: averages can be rebuilt without this snapshot.

    Raises:
      TrainingError: it failed in a run of several processes, now out of step with each other.
    """
    items = {_item(sigma_rel): track for sigma_rel, track in tracks.items()}
    arguments: dict[str, Any] = {name: ocp.args.StandardSave(t) for name, t in items.items()}
    arguments[_FINGERPRINTS] = ocp.args.JsonSave(fingerprints(items))
    try:
        drop_snapshots_after(workdir, step - 1)
        with _open(workdir) as manager:
            manager.save(step, args=ocp.args.Composite(**arguments))
    # A full disk is an OSError or a ValueError, depending on which file met it.
    except Exception as error:
        folder = snapshot_folder(workdir)
        failure = f"EMA snapshot {step} could not be saved in {folder}: {brief(error)}"
        if jax.process_count() > 1:
            raise TrainingError(failure) from error
        hosts.say(f"{failure}; training goes on")


def read_track(
    workdir: epath.PathLike, step: int, sigma_rel: str, like: dict[str, jax.ShapeDtypeStruct]
) -> Parameters:
    """One track of one snapshot, onto the first local device.

    Raises:
      ConfigError: it is damaged, or does not hold parameters of these shapes.
    """
    name = _item(sigma_rel)
    target = ocp.args.StandardRestore(on_one_device(like))
    arguments = {name: target, _FINGERPRINTS: ocp.args.JsonRestore()}
    try:
        with _open(workdir, reading=True) as manager:
            restored = manager.restore(step, args=ocp.args.Composite(**arguments))
        for path, value in fingerprints({name: restored[name]}).items():
            if value != restored[_FINGERPRINTS][path]:
                raise ValueError(f"{path} is not what was saved")
        return restored[name]
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise  # no fault of the files
    except Exception as error:
        raise ConfigError(
            f"EMA snapshot {step} in {snapshot_folder(workdir)} cannot be read, perhaps it is "
            f"damaged ({brief(error)}); allowed: to move it away and rebuild without it"
        ) from error


def _item(sigma_rel: str) -> str:
    return f"sigma_{sigma_rel}"


def _open(workdir: epath.PathLike, *, reading: bool = False) -> ocp.CheckpointManager:
    if reading:
        options = ocp.CheckpointManagerOptions(read_only=True, create=False)
    else:
        options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    return ocp.CheckpointManager(snapshot_folder(workdir), options=options)
