"""What each cache saves and costs: time, distance to samples without one, and to data.

The run is of digits or patches, which have judges of their own (`eval.features.embedded`). Without
--workdir one is trained first, in a temporary folder.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.embedded_judge import EmbeddedJudge
from benchmarks.solvers import table, trained
from dit_moe.config import ConfigError
from dit_moe.config.caching import TeaCacheConfig, parse_cache
from dit_moe.config.files import load_file
from dit_moe.diffusion.integrate import build_objective, sample
from dit_moe.models.parameters import Parameters, functional
from dit_moe.runs.loading import Run, load_run
from dit_moe.sampling.caches import open_caches
from dit_moe.sampling.calibration import fit_changes
from dit_moe.sampling.guides import guided
from dit_moe.sampling.request import Request, build_request
from dit_moe.sampling.sampler import image_keys
from dit_moe.storage.images import to_uint8
from eval.features.embedded import EMBEDDED

COMPARED = [
    "fora:every=2",
    "fora:every=3",
    "fora:every=5",
    "taylorseer:every=3,order=1",
    "taylorseer:every=3,order=2",
    "taylorseer:every=5,order=2",
    "delta:every=2,share=0.5",
    "delta:every=3,share=0.75",
    "teacache:threshold=0.05",
    "teacache:threshold=0.1",
    "teacache:threshold=0.2",
    "first_block:threshold=0.05",
    "first_block:threshold=0.1",
]


class Bench:
    """Draws the same images with every cache.

    Args:
      run: that draws.
      settings: as for `build_request`.
      repeats: how often each program is timed, in turns with the one without a cache.
    """

    def __init__(self, run: Run, settings: dict[str, Any], repeats: int):
        self.run, self.settings, self.repeats = run, settings, repeats
        self.judge = EmbeddedJudge(run.config.data.source)
        self.request = build_request(run.config, **settings)
        self.coefficients: tuple[float, ...] | None = None
        self.plain = self.program(self.request)
        self.samples, _ = self.plain()

    def program(self, request: Request) -> Callable[[], tuple[np.ndarray, int]]:
        """From nothing to the images and how many evaluations computed all units."""
        config = self.run.config
        model, objective = config.model, build_objective(config.objective)
        caches = open_caches(config, request)
        options = dataclasses.asdict(request.integration)

        @jax.jit
        def draw(parameters: Parameters, key_N: jax.Array, y_N: jax.Array):
            network, full = functional(model)(parameters), 0
            if caches is not None:
                network = caches.around(network, len(y_N))
            denoiser = objective.denoiser(network)
            denoiser = guided(denoiser, None, model.null_label, request.guidance)
            x = sample(objective, denoiser, key_N, y_N, model.image_shape, **options)
            if caches is not None and caches.own.method.schedule is None:
                full = network.kept.full
            return x, full

        y_N = request.labels()
        key_N = image_keys(request.seed, np.arange(len(y_N)))

        def drawn() -> tuple[np.ndarray, int]:
            x, full = draw(self.run.parameters, key_N, y_N)
            if caches is not None and caches.own.method.schedule is not None:
                full = caches.own.method.schedule.full.sum()
            return np.asarray(x), int(full)

        return drawn

    def row(self, text: str) -> list[str]:
        """A line of the table."""
        cache = parse_cache(text)
        if isinstance(cache, TeaCacheConfig):
            self.coefficients = self.coefficients or self._calibrated()
            cache = TeaCacheConfig(threshold=cache.threshold, coefficients=self.coefficients)
        request = build_request(self.run.config, **self.settings, cache=cache)
        caches, program = open_caches(self.run.config, request), self.program(request)
        x, full = program()
        seconds = [[timed(self.plain), timed(program)] for _ in range(self.repeats)]
        before, after = np.min(seconds, axis=0)
        flops = caches and caches.own.flops()
        share = f"{flops[0] / flops[1]:.0%}" if flops else ""
        steps = len(caches.own.rows) if caches else self.request.integration.steps
        return [
            f"`{text}`",
            f"{full} of {steps}",
            share,
            f"{after:.2f} / {before:.2f}",
            f"{before / after:.2f}",
            f"{psnr(x, self.samples):.1f}",
            f"{self.judge.distance(to_uint8(x)):.2f}",
        ]

    def _calibrated(self) -> tuple[float, ...]:
        """By other images than those that are drawn."""
        others: dict[str, Any] = {**self.settings, "seed": 1, "num_samples": 32}
        request = build_request(self.run.config, **others)
        return fit_changes(self.run.config, self.run.parameters, request)[0]


def timed(program: Callable[[], object]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    program()
    return time.perf_counter() - start


def psnr(x: np.ndarray, reference: np.ndarray) -> float:
    """Decibels of values from -1 to 1, the mean over images."""
    error_N = np.square(np.clip(x, -1, 1) - np.clip(reference, -1, 1)).mean(axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(4 / np.maximum(error_N, 1e-12))))


def rows(bench: Bench, caches: list[str]) -> Iterator[list[str]]:
    """The line without a cache, then one for each."""
    distance = bench.judge.distance(to_uint8(bench.samples))
    yield ["none", "all", "100%", "", "1.00", "", f"{distance:.2f}"]
    for text in caches:
        yield bench.row(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", help="a run; without it one is trained")
    parser.add_argument("--config", default="configs/digits.py:dit-moe", metavar="FILE[:ARGUMENT]")
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--solver", default="euler")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance_scale", type=float, default=1.5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--caches", nargs="+", default=COMPARED)
    arguments, overrides = parser.parse_known_args()
    try:
        if arguments.workdir is not None:
            run = load_run(arguments.workdir)
        else:
            run = trained(load_file(arguments.config, overrides))
        if run.config.data.source not in EMBEDDED:
            sys.exit(f"error: data.source is {run.config.data.source!r}; allowed: digits, patches")
        settings = {
            "num_samples": arguments.samples,
            "integration": {"solver": arguments.solver, "steps": arguments.steps},
            "guidance": {"scale": arguments.guidance_scale},
        }
        bench = Bench(run, settings, arguments.repeats)
        print(
            f"{run.config.name}, {arguments.solver} with {arguments.steps} steps, "
            f"{arguments.samples} samples, guidance {arguments.guidance_scale:g}\n"
        )
        header = ["cache", "full evaluations", "operations", "seconds with / without", "faster"]
        table([*header, "PSNR to none", "Fréchet distance"], rows(bench, arguments.caches))
    except ConfigError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
