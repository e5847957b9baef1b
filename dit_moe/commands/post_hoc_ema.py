"""Makes moving averages of any length from the EMA snapshots of a run, after training."""

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dit_moe.config.command_line import command_parser, end, numbers, run_command
from dit_moe.config.verbs import spoken
from dit_moe.runs.ema_snapshots import RECIPE_FILE

if TYPE_CHECKING:
    from tqdm import tqdm

    from dit_moe.models.parameters import Parameters

MAX_ERROR = 0.05
"""Largest relative L2 error of a rebuilt profile."""

EPILOG = """\
examples:
  python -m dit_moe.training.post_hoc_ema --workdir runs/xl --sigma_rel 0.12 --output runs/xl-0.12
  python sample.py --workdir runs/xl-0.12 --output out/

  python -m dit_moe.training.post_hoc_ema --workdir runs/xl --sigma_rel 0.03,0.07,0.15 \\
      --step 200000 --output runs/xl-ema
  python -m eval.fid --workdir runs/xl-ema/sigma_0.07 ...

The run must have been trained with --config.train.post_hoc_ema=0.05,0.1 or the like. sigma_rel is
the standard deviation of an average's weights over the steps, as a share of all steps up to its
end; with 0.05, half of the weight lies on the last 4% of them. What is written is a run folder
whose parameters are the average; it can be sampled and measured but not trained further.
docs/ema.md says more.
"""


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


Numbers = np.ndarray | np.float64


def profile_products(t_a: Numbers, gamma_a: Numbers, t_b: Numbers, gamma_b: Numbers) -> np.ndarray:
    """Integrals of the products of two power-function profiles, float64; all broadcast.

    For t_a <= t_b, with p from `training.ema_tracks`, the integral of p_a p_b over 0 to t_a is
    (gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1) (t_a / t_b)^gamma_b / t_b
    (Karras et al. 2024, appendix C.2).
    """
    earlier, later = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    power = np.where(t_a < t_b, gamma_b, gamma_a)
    factor = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return factor * (earlier / later) ** power / later


def fit_profiles(
    t_I: np.ndarray, gamma_I: np.ndarray, t: float, gamma_R: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The sums of stored profiles that come closest to those of some averages that end at t.

    Least squares as in appendix C.2 of the paper. Beyond it, coefficients sum to 1: parameters
    that stand still are then rebuilt as they are, however few the snapshots.

    Args:
      t_I: steps of the stored profiles, float64 [I].
      gamma_I: their exponents, float64 [I].
      t: step at which the wanted averages end.
      gamma_R: their exponents, float64 [R].

    Returns:
      Coefficients [R, I], and the relative L2 errors of the fitted profiles [R].
    """
    A_IxI = profile_products(t_I[:, None], gamma_I[:, None], t_I, gamma_I)
    B_IxR = profile_products(t_I[:, None], gamma_I[:, None], np.float64(t), gamma_R)
    # Profiles scaled to norm 1, for the sake of the condition.
    norm_I = np.sqrt(np.diag(A_IxI))
    A_IxI = A_IxI / (norm_I[:, None] * norm_I)
    B_IxR = B_IxR / norm_I[:, None]
    # The last row: the sum of the coefficients; the last column: its Lagrange multiplier.
    one_1xI = 1 / norm_I[None]
    system = np.block([[A_IxI, one_1xI.T], [one_1xI, np.zeros((1, 1))]])
    right = np.concatenate([B_IxR, np.ones((1, len(gamma_R)))])
    x_IxR = np.linalg.lstsq(system, right)[0][:-1]
    square_R = profile_products(np.float64(t), gamma_R, np.float64(t), gamma_R)
    error_R = np.sum(x_IxR * (A_IxI @ x_IxR - 2 * B_IxR), axis=0) / square_R + 1
    return (x_IxR / norm_I[:, None]).T, np.sqrt(np.maximum(error_R, 0))


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
    from dit_moe.config import MAX_SIGMA_REL, ConfigError
    from dit_moe.config.files import load_json
    from dit_moe.runs.ema_snapshots import snapshot_steps
    from dit_moe.runs.ema_tracks import exponent

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


def rebuild(recipe: Recipe, bar: "tqdm | None" = None) -> "Parameters":
    """The average, float32 on the first local device. Holds two models in memory.

    Args:
      recipe: from `plan`.
      bar: advanced by one for each track of a snapshot.

    Raises:
      ConfigError: a snapshot is damaged.
    """
    import jax
    import jax.numpy as jnp

    from dit_moe.config.files import load_json
    from dit_moe.models.parameters import abstract_parameters
    from dit_moe.runs.ema_snapshots import read_track

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


def write_run(recipe: Recipe, parameters: "Parameters", output: Path) -> None:
    """Writes a run folder whose parameters and moving average are both the rebuilt one.

    Raises:
      OSError, TrainingError: it cannot be written.
    """
    import jax.numpy as jnp

    from dit_moe.runs.checkpoints import Checkpoints
    from dit_moe.runs.state import TrainState
    from dit_moe.storage.records import write_record

    output.mkdir(exist_ok=True)
    for name in ("config.json", "latents.json", "classes.json"):
        source = Path(recipe.workdir) / name
        if source.exists():
            shutil.copyfile(source, output / name)
    write_record(output / RECIPE_FILE, recipe)
    state = TrainState(
        step=jnp.int32(recipe.step), parameters=parameters, ema=parameters, optimizer=()
    )
    with Checkpoints(output, keep=1) as checkpoints:
        checkpoints.save(state)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_parser("python -m dit_moe.training.post_hoc_ema", __doc__, EPILOG)
    add = parser.add_argument
    add("--workdir", required=True, type=Path, help="run folder")
    add(
        "--sigma_rel",
        required=True,
        metavar="0.03,0.07",
        help="relative widths of the averages, above 0 and below 0.2886",
    )
    add("--step", type=int, help="where the averages end (default: the newest snapshot)")
    add(
        "--output",
        required=True,
        type=Path,
        help="new run folder; with several widths, a folder of run folders sigma_WIDTH",
    )
    arguments = parser.parse_args(argv)

    # After the arguments are parsed: JAX takes seconds to import.
    from dit_moe.runs.checkpoints import TrainingError

    return run_command(lambda: run(arguments), TrainingError)


def run(arguments: argparse.Namespace) -> None:
    """Rebuilds."""
    import jax
    from tqdm import tqdm

    from dit_moe.storage.files import new_folder

    # There is little to compute, and the training may be using the accelerator.
    jax.config.update("jax_platforms", "cpu")
    output: Path = arguments.output
    recipes = plan(arguments.workdir, _widths(arguments.sigma_rel), arguments.step)
    # With all their digits: no two widths are one name.
    names = [f"sigma_{recipe.sigma_rel}" for recipe in recipes] if len(recipes) > 1 else [""]
    total = sum(recipe.num_reads for recipe in recipes)
    with new_folder(output) as folder:
        for recipe in recipes:
            print(
                f"sigma_rel {recipe.sigma_rel:g} at step {recipe.step:,}: profile within "
                f"{recipe.error:.2%}"
            )
        with tqdm(total=total, unit="snapshot", dynamic_ncols=True) as bar:
            for recipe, name in zip(recipes, names, strict=True):
                write_run(recipe, rebuild(recipe, bar), folder / name)
    sample = spoken(f"python sample.py --workdir {output / names[0]} --output out/")
    print(f"Wrote {output}. Next: {sample}")


def _widths(text: str) -> list[float]:
    from dit_moe.config import ConfigError

    widths = numbers("sigma_rel", text, float)
    if not widths or len(set(widths)) < len(widths):
        raise ConfigError(
            f"sigma_rel is {text!r}; allowed: different numbers with commas, such as 0.03,0.07"
        )
    return widths


def _listing(steps: list[int]) -> str:
    texts = [str(step) for step in steps]
    return ", ".join(texts if len(texts) <= 12 else [*texts[:6], "...", *texts[-6:]])


if __name__ == "__main__":
    end(main)
