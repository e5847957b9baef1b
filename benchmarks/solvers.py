"""Fréchet distance of a run's samples over the number of network evaluations, for every solver.

The run is of digits or patches, which have judges of their own (`eval.features.embedded`). Without
--workdir one is trained first, in a temporary folder.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.embedded_judge import EmbeddedJudge
from dit_moe.config import SOLVERS, TIME_GRIDS, Config, ConfigError
from dit_moe.config.files import load_file
from dit_moe.diffusion.denoiser import Denoised, Denoiser
from dit_moe.diffusion.integrate import build_objective, sample
from dit_moe.models.parameters import Parameters, functional
from dit_moe.runs.loading import Run, load_run
from dit_moe.storage.images import to_uint8
from dit_moe.training.loop import train
from eval.features.embedded import EMBEDDED

# Euler's method is ddim with eta 0, and dopri5 has no given number of evaluations.
COMPARED = [solver for solver in SOLVERS if solver not in ("euler", "dopri5")]
PER_STEP = {"heun": 2, "midpoint": 2, "rk4": 4}
"""Evaluations a step; of the others one. Under DDPM the last step has one whatever the solver."""
TOLERANCES = (0.3, 0.1, 0.03, 0.01, 0.001)
"""Those that dopri5 is run with."""


class Counter:
    """Counts how often a network is evaluated, also inside of compiled loops."""

    def __init__(self) -> None:
        self.count = 0

    def around(self, denoiser: Denoiser) -> Denoiser:
        """The same denoiser, counted."""

        def counted(z: jax.Array, t: jax.Array, y_N: jax.Array) -> Denoised:
            jax.debug.callback(self._add)
            return denoiser(z, t, y_N)

        return counted

    def _add(self) -> None:
        self.count += 1


class Judge:
    """Draws from a run as often as it is asked, and compares with the training images."""

    def __init__(self, run: Run, samples: int):
        model = run.config.model
        self.run, self.objective = run, build_objective(run.config.objective)
        self.bind, self.counter = functional(model), Counter()
        self.shape = model.image_shape
        self.key_N = jax.random.split(jax.random.key(0), samples)
        self.label_N = np.resize(np.arange(model.num_classes, dtype=np.int32), samples)
        dataset = run.config.data.source
        self.judge = EmbeddedJudge(dataset)
        self.ceiling = self.judge.distance(self.judge.heldout(samples)[0])

    def __call__(self, solver: str, steps: int, **options: Any) -> tuple[float, int]:
        """The distance, and the evaluations that one image took at most."""

        @jax.jit
        def draw(parameters: Parameters, key_N: jax.Array, y_N: jax.Array) -> jax.Array:
            denoiser = self.counter.around(self.objective.denoiser(self.bind(parameters)))
            return sample(
                self.objective, denoiser, key_N, y_N, self.shape, solver, steps, **options
            )

        self.counter.count = 0
        x_NxHxWxC = np.asarray(draw(self.run.parameters, self.key_N, self.label_N))
        jax.effects_barrier()
        return self.judge.distance(to_uint8(x_NxHxWxC)), self.counter.count


def rows(
    judge: Judge, solvers: list[str], evaluations: list[int], grids: list[str]
) -> Iterator[list[str]]:
    """One line for every solver, time grid and eta."""
    objective = judge.objective
    # A range that ends before the data: the last step is shorter, which leaves room for one more.
    short_end = objective.time_range[0] > 0
    for solver in solvers:
        if solver == "ancestral" and objective.config.sampled_timesteps is None:
            continue
        options = SOLVERS[solver]
        variants: list[dict[str, Any]] = [{}]
        if "time_grid" in options:
            variants = [{"time_grid": grid} for grid in grids]
        if "eta" in options:
            variants = [v | {"eta": eta} for v in variants for eta in (0.0, 1.0)]
        for variant in variants:
            cells = []
            for budget in evaluations:
                per_step = PER_STEP.get(solver, 1)
                steps = (budget + (per_step - 1) * short_end) // per_step
                distance, _ = judge(solver, steps, **variant)
                cells.append(f"{distance:.2f}")
            name = "euler (ddim, eta 0)" if variant.get("eta") == 0 else solver
            name += ", eta 1" if variant.get("eta") else ""
            yield [name, variant.get("time_grid", ""), *cells]


def table(header: list[str], lines: Iterator[list[str]]) -> None:
    """Prints Markdown, line by line as it becomes known."""
    print(f"| {' | '.join(header)} |")
    print("|" + "---|" * len(header))
    for line in lines:
        print(f"| {' | '.join(line)} |", flush=True)


def trained(config: Config) -> Run:
    """A run of the config that leaves nothing behind."""
    with tempfile.TemporaryDirectory() as folder:
        if train(config, Path(folder)) is not None:
            sys.exit(130)
        return load_run(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", help="a run; without it one is trained")
    parser.add_argument("--config", default="configs/digits.py:dit", metavar="FILE[:ARGUMENT]")
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument(
        "--time_grids", default="uniform", metavar="A,B", help=", ".join(TIME_GRIDS)
    )
    parser.add_argument("--evaluations", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, default=[*COMPARED, "dopri5"])
    arguments, overrides = parser.parse_known_args()

    try:
        if arguments.workdir is not None:
            run = load_run(arguments.workdir)
        else:
            run = trained(load_file(arguments.config, overrides))
    except ConfigError as error:
        sys.exit(f"error: {error}")
    if run.config.data.source not in EMBEDDED:
        sys.exit(f"error: data.source is {run.config.data.source!r}; allowed: digits, patches")
    judge = Judge(run, arguments.samples)
    print(
        f"{run.config.name}, {run.config.objective.name}, {arguments.samples} samples without "
        f"guidance; as many held-out images: {judge.ceiling:.2f}\n"
    )
    fixed = [solver for solver in arguments.solvers if solver != "dopri5"]
    lines = rows(judge, fixed, arguments.evaluations, arguments.time_grids.split(","))
    table(["solver", "time grid", *map(str, arguments.evaluations)], lines)
    if "dopri5" not in arguments.solvers:
        return
    print()
    found = [judge("dopri5", 200, tolerance=tolerance) for tolerance in TOLERANCES]
    cells = [f"{distance:.2f} ({count})" for distance, count in found]
    table(["tolerance", *map(str, TOLERANCES)], iter([["dopri5 (evaluations)", *cells]]))


if __name__ == "__main__":
    main()
