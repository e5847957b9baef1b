"""Compresses a run of the digits by every method and share, and judges each beside the original.

Without --workdir a run is trained first. Prints a row for each: bytes, parameters that compute a
token, the error of the prediction by time (mean square, over that of the original's own
prediction), the Fréchet distance of samples to the original's of the same seeds and to the training
pictures, and how many show their class. What is judged is kept in --output, so that the same
command goes on.
"""

import argparse
import dataclasses
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from benchmarks.embedded_judge import EmbeddedJudge
from dit_moe.config import ConfigError
from dit_moe.config.files import load_file
from dit_moe.models.parameters import functional
from dit_moe.runs.loading import Run, load_run
from dit_moe.sampling.request import build_request
from dit_moe.sampling.sampler import build_sampler, generate
from dit_moe.storage.files import atomic
from dit_moe.storage.images import to_uint8
from dit_moe.surgery.compress.calibration import Calibration, calibrate, calibration_settings
from dit_moe.surgery.compress.chain import compress, read_model
from dit_moe.surgery.compress.methods import chosen_steps
from dit_moe.surgery.compress.record import size_of
from dit_moe.training.loop import train
from eval.classes.judged import embedded
from eval.classes.judges import Judges
from eval.classes.judges import train as train_judges
from eval.metrics import frechet_distance
from eval.statistics import Gaussian, SmallSetWarning, fit_gaussian

# By name, the steps of a share that goes.
METHODS = {
    "drop-random": "drop:share={share},by=random",
    "drop-use": "drop:share={share},by=use",
    "drop-output": "drop:share={share},by=output",
    "drop-output-mask": "drop:share={share},by=output,router=mask",
    "stun": "stun:share={share}",
    "stun-remap": "stun:share={share},router=remap",
    "sparsify-magnitude": "sparsify:share={share},by=magnitude",
    "sparsify-wanda": "sparsify:share={share}",
    "sparsify-owl": "sparsify:share={share},layers=owl",
    "slim-fisher": "slim:hidden={hidden}",
}


class Judge:
    """Judges models beside the original.

    Args:
      run: the original.
      samples: of each of the seeds.
      seeds: how many.
      held: what the prediction is asked for.
    """

    def __init__(self, run: Run, samples: int, seeds: int, held: Calibration):
        self.samples, self.seeds, self.held = samples, seeds, held
        self.features = EmbeddedJudge("digits")
        self.data = embedded("digits")
        self.classes: Judges = train_judges(self.data)
        self.values = self._predictions(run)
        self.drawn: list[Gaussian] = []
        self.original = self(run)

    def __call__(self, run: Run) -> dict[str, float]:
        found: dict[str, list[float]] = {"to original": [], "to data": [], "class": []}
        drawn = list(self._draw(run))
        statistics = [self._statistics(image) for image, _ in drawn]
        self.drawn = self.drawn or statistics
        for (image, label), own, original in zip(drawn, statistics, self.drawn, strict=True):
            found["to original"].append(frechet_distance(own, original))
            found["to data"].append(frechet_distance(own, self.features.reference))
            shown = self.classes.classify(self.data.describe(image))
            found["class"].append(float((shown == label).mean()))
        errors = [
            np.square(a - b).mean() / np.square(b).mean()
            for a, b in zip(self._predictions(run), self.values, strict=True)
        ]
        thirds = np.array_split(np.array(errors), 3)
        by_time = {f"error {i}": float(part.mean()) for i, part in enumerate(thirds)}
        return by_time | {name: float(np.mean(values)) for name, values in found.items()}

    def _draw(self, run: Run) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Images and labels of each seed."""
        sampler, batch = None, min(200, self.samples)
        for seed in range(self.seeds):
            request = build_request(run.config, num_samples=self.samples, seed=seed)
            sampler = sampler or build_sampler(run.config, request)
            x = np.concatenate([*generate(sampler, run.parameters, request, batch)])
            yield to_uint8(x), np.asarray(request.labels())

    def _statistics(self, image_NxHxWxC: np.ndarray) -> Gaussian:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SmallSetWarning)
            return fit_gaussian(self.features.extractor(image_NxHxWxC)["pool"])

    def _predictions(self, run: Run) -> list[np.ndarray]:
        """What the network says at each time, from noise to data."""
        build = functional(run.config.model)
        look = jax.jit(lambda p, x, t, y: build(p)(x, t, y).value)
        return [
            np.concatenate([look(run.parameters, i.x, i.t, i.y) for i in self.held.batches(time)])
            for time in range(len(self.held.places))
        ]


def measured(folder: Path, share: float, method: str, workdir: Path, judge: Judge) -> dict:
    """Compresses and judges, or reads what was found before."""
    result = folder.with_name(f"{folder.name}.json")
    if not result.exists():
        run = load_run(workdir)
        moe = run.config.model.mixtures[0]
        hidden = max(round((1 - share) * moe.hidden_ratio * run.config.model.width), 1)
        steps = chosen_steps([METHODS[method].format(share=share, hidden=hidden)])
        if not (folder / "compressed.json").exists():
            given = {"images": judge.samples // 4 or 1}
            compress(workdir, folder, steps, calibration=given, sums=folder.with_name("sums"))
        record = json.loads((folder / "compressed.json").read_text())
        found = {**record["steps"][-1]["after"], **judge(load_run(folder))}
        with atomic(result) as temporary:
            temporary.write_text(json.dumps(found))
    return json.loads(result.read_text())


def trained(folder: Path, config: str, steps: int, overrides: list[str]) -> Path:
    """A run, trained or as it is there."""
    base = load_file(config, overrides)
    settings = dataclasses.replace(
        base.train, steps=steps, warmup_steps=steps // 10, checkpoint_every=steps, sample_every=0
    )
    if train(dataclasses.replace(base, train=settings), folder) is not None:
        sys.exit("Stopped. Give the same command again to go on.")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--workdir", type=Path, help="a run of the digits; none: one is trained")
    add("--config", default="configs/digits.py:dit-moe", help="of the run to train")
    add("--train_steps", type=int, default=1200, help="(default: 1200)")
    add("--shares", type=float, nargs="+", default=[0.25, 0.5], help="(default: 0.25 0.5)")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    add("--samples", type=int, default=400, help="of each seed (default: 400)")
    add("--seeds", type=int, default=3, help="(default: 3)")
    add("--output", type=Path, default=Path("runs/compression"), help="folder of the models")
    arguments, overrides = parser.parse_known_args()

    output: Path = arguments.output
    workdir = arguments.workdir or trained(
        output / "run", arguments.config, arguments.train_steps, overrides
    )
    run = load_run(workdir)
    # Not those that the methods see.
    settings = calibration_settings(run.config, images=min(64, arguments.samples), seed=1)
    held = calibrate(run.config, settings, output / "held")
    judge = Judge(run, arguments.samples, arguments.seeds, held)
    size = size_of(read_model(workdir, ema=True), thin=False)
    found = {"the original": {**dataclasses.asdict(size), **judge.original}}
    for method in arguments.methods:
        for share in arguments.shares:
            name = f"{method}, {share:.0%} away"
            folder = output / f"{method}-{share}"
            try:
                found[name] = measured(folder, share, method, workdir, judge)
            except ConfigError as error:
                print(f"{name}: {error}", flush=True)
                continue
            print(f"{name}: {found[name]}", flush=True)
            jax.clear_caches()
    print(
        "\n| | bytes | active | error near noise | in the middle | near data | to the original "
        "| to the data | class shown |\n|---|---|---|---|---|---|---|---|---|"
    )
    for name, row in found.items():
        errors = " | ".join(f"{row[f'error {i}']:.2g}" for i in range(3))
        print(
            f"| {name} | {row['bytes']:,} | {row['active']:,.0f} | {errors} "
            f"| {row['to original']:.2f} | {row['to data']:.2f} | {row['class']:.1%} |"
        )


if __name__ == "__main__":
    main()
