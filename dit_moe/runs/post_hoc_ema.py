"""Averages of any length from a run's EMA snapshots: each as a sum, and that as a run folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from dit_moe.config import MAX_SIGMA_REL, ConfigError
from dit_moe.config.files import load_json
from dit_moe.models.parameters import Parameters, abstract_parameters
from dit_moe.runs.checkpoints import Checkpoints
from dit_moe.runs.ema_profiles import fit_profiles
from dit_moe.runs.ema_snapshots import RECIPE_FILE, read_track, snapshot_steps
from dit_moe.runs.ema_tracks import exponent
from dit_moe.runs.model_folder import write_beside
from dit_moe.runs.state import TrainState
from dit_moe.storage.records import write_record

MAX_ERROR = 0.05
"""Largest relative L2 error of a rebuilt profile."""


@dataclass(frozen=True)
class Recipe:
    """One average as a sum over snapshots. Kept in its run folder as `RECIPE_FILE`."""

    workdir: str
    step: int
    """Where the average ends."""
    sigma_rel: float
    error: float
    """How far the sum's profile is off: the L2 norm of its difference from the wanted one over the
    latter's norm."""
    coefficients: dict[str, dict[int, float]]
    """By track and step of the snapshot; without those that are 0."""

    @property
    def num_reads(self) -> int:
        """How many tracks of snapshots go into it."""
        return sum(len(by_step) for by_step in self.coefficients.values())


def plan(workdir: Path, widths: Sequence[float], step: int | None = None) -> list[Recipe]:
    """How averages of some relative widths are made from a run's snapshots.

    Args:
      workdir: the run folder.
      widths: sigma_rel of each.
      step: where they end; None: at the newest snapshot.

    Raises:
      ConfigError: the folder is not a run with snapshots, there is none of that step, or a width
        cannot be made from those up to it.
    """
    if not workdir.is_dir():
        raise ConfigError(f"workdir is {str(workdir)!r}, which is not a folder; allowed: a run")
    tracks = load_json(workdir / "config.json").train.post_hoc_ema
    steps = snapshot_steps(workdir)
    if not tracks or not steps:
        raise ConfigError(
            f"workdir {str(workdir)!r} has no EMA snapshots; allowed: a run that was trained with "
            "--config.train.post_hoc_ema=0.05,0.1 or the like"
        )
    step = steps[-1] if step is None else step
    if step not in steps:
        raise ConfigError(f"step is {step}; allowed: a snapshot's ({_listing(steps)})")
    for width in widths:
        if not 0 < width < MAX_SIGMA_REL:
            raise ConfigError(f"sigma_rel is {width:g}; allowed: above 0, below 12^-1/2 (0.2886)")

    steps = [s for s in steps if s <= step]
    t_I = np.repeat(np.array(steps, np.float64), len(tracks))
    gamma_I = np.tile([exponent(w) for w in tracks], len(steps))
    candidates = np.array([*widths, *tracks, *np.geomspace(1e-3, MAX_SIGMA_REL, 200)[:-1]])
    gamma_R = np.array([exponent(w) for w in candidates])
    x_RxI, error_R = fit_profiles(t_I, gamma_I, step, gamma_R)
    # Far below what rounding leaves of the parameters: not worth reading a snapshot.
    x_RxI[np.abs(x_RxI) < 1e-8] = 0

    recipes = []
    for width, x_I, error in zip(widths, x_RxI, error_R, strict=False):
        if error > MAX_ERROR:
            possible = candidates[error_R <= MAX_ERROR]
            nearest = possible[np.argmin(np.abs(np.log(possible / width)))]
            raise ConfigError(
                f"sigma_rel is {width:g}, which the {len(steps)} snapshots up to step {step:,} "
                f"make with an error of {error:.0%}; allowed: at most {MAX_ERROR:.0%}, the "
                f"nearest is {nearest:.3g}"
            )
        by_track = {
            str(track): {s: float(x) for s, x in zip(steps, x_S, strict=True) if x}
            for track, x_S in zip(tracks, x_I.reshape(-1, len(tracks)).T, strict=True)
        }
        recipes.append(Recipe(str(workdir.resolve()), step, width, float(error), by_track))
    return recipes


def rebuild(recipe: Recipe, bar: tqdm | None = None) -> Parameters:
    """The average, float32 on the first local device. Holds two models in memory.

    Args:
      recipe: from `plan`.
      bar: advanced by one for each track of a snapshot.

    Raises:
      ConfigError: a snapshot is damaged.
    """
    workdir = Path(recipe.workdir)
    like = abstract_parameters(load_json(workdir / "config.json").model)
    add = jax.jit(lambda total, track, x: total + x * track, donate_argnums=0)
    total = {path: jnp.zeros(p.shape, p.dtype) for path, p in like.items()}
    for sigma_rel, by_step in recipe.coefficients.items():
        for step, x in by_step.items():
            track = read_track(workdir, step, sigma_rel, like)
            for path in total:
                # Its memory is free again before the next snapshot is read.
                total[path] = add(total[path], track.pop(path), x)
            if bar is not None:
                bar.update()
    return total


def write_run(recipe: Recipe, parameters: Parameters, output: Path) -> None:
    """Writes a run folder whose parameters and moving average are both the rebuilt one.

    Raises:
      OSError, TrainingError: it cannot be written.
      ConfigError: what lies beside the parameters cannot be read.
    """
    output.mkdir(exist_ok=True)
    workdir = Path(recipe.workdir)
    write_beside(output, workdir, load_json(workdir / "config.json"))
    write_record(output / RECIPE_FILE, recipe)
    state = TrainState(
        step=jnp.int32(recipe.step), parameters=parameters, ema=parameters, optimizer=()
    )
    with Checkpoints(output, keep=1) as checkpoints:
        checkpoints.save(state)


def _listing(steps: list[int]) -> str:
    texts = [str(step) for step in steps]
    return ", ".join(texts if len(texts) <= 12 else [*texts[:6], "...", *texts[-6:]])
