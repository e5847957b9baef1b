"""Compresses runs of the digits by every method and share, and judges each beside the original.

Without --workdir a run of each of --configs is trained first. Prints a row for each: bytes, mean
bits, parameters that compute a token, the error of the prediction by time (mean square, over that
of the original's own prediction), the Fréchet distance of samples to the original's of the same
seeds and to the training pictures with its standard deviation over seeds, and how many show their
class. The second row is the original beside itself with the next seed: what is nearer to it than
that is within its noise. What is judged is kept in --output, so that the same command goes on.
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
from dit_moe.config import ConfigError, ModelConfig
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

_TRAIN = "train:steps={steps},learning_rate=0.0003,batch_size=64"
_PART = "train:steps={third},learning_rate=0.0003,batch_size=64"
# By name, the steps of a share that goes.
BY_SHARE = {
    "drop-random": ("drop:share={share},by=random",),
    "drop-use": ("drop:share={share},by=use",),
    "drop-output": ("drop:share={share},by=output",),
    "drop-output-mask": ("drop:share={share},by=output,router=mask",),
    "stun": ("stun:share={share}",),
    "stun-remap": ("stun:share={share},router=remap",),
    "sparsify-magnitude": ("sparsify:share={share},by=magnitude",),
    "sparsify-wanda": ("sparsify:share={share}",),
    "sparsify-owl": ("sparsify:share={share},layers=owl",),
    "slim-fisher": ("slim:hidden={hidden}",),
    "slim-one-shot": ("slim:hidden={hidden}", _TRAIN),
    "slim-staged": (
        "slim:hidden={first}",
        _PART,
        "slim:hidden={second}",
        _PART,
        "slim:hidden={hidden}",
        _PART,
    ),
}
# By name, the steps of methods that round all weights.
ROUNDED = {
    f"{bits}-bits-{method}": (f"quantise:bits={bits},method={method},group=32",)
    for bits in (8, 4, 3)
    for method in ("nearest", "hqq", "gptq")
} | {
    f"budget-3-{by}": (f"quantise:budget=3,choices=2,3,4,by={by},method=gptq,attention=3,group=32",)
    for by in ("error", "use", "first", "outliers", "importance", "random")
}
METHODS = {**BY_SHARE, **ROUNDED}


class Judge:
    """Judges models beside the original.

    Args:
      run: the original.
      samples: of each of the seeds.
      seeds: how many.
      steps: of the solver; None: as the run's config says.
      held: what the prediction is asked for.
    """

    def __init__(self, run: Run, samples: int, seeds: int, steps: int | None, held: Calibration):
        self.samples, self.seeds, self.steps, self.held = samples, seeds, steps, held
        self.features = EmbeddedJudge("digits")
        self.data = embedded("digits")
        self.classes: Judges = train_judges(self.data)
        self.values = self._predictions(run)
        self.drawn: list[Gaussian] = []
        self.original = self(run)

    def noise(self) -> float:
        """The distance of the original's samples to its own of the next seed."""
        pairs = zip(self.drawn, self.drawn[1:] + self.drawn[:1], strict=True)
        return float(np.mean([frechet_distance(own, other) for own, other in pairs]))

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
        spread = {"spread": float(np.std(found["to data"]))}
        return by_time | spread | {name: float(np.mean(values)) for name, values in found.items()}

    def _draw(self, run: Run) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Images and labels of each seed."""
        sampler, batch = None, min(200, self.samples)
        for seed in range(self.seeds):
            request = build_request(
                run.config, num_samples=self.samples, seed=seed, integration={"steps": self.steps}
            )
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


def steps_of(method: str, share: float, model: ModelConfig, steps: int) -> list[str]:
    """The steps of a method; neurons in three stages of equal ratio."""
    full = model.mixtures[0].hidden_ratio * model.width
    left = [full * (1 - share) ** (stage / 3) for stage in (1, 2, 3)]
    first, second, hidden = (max(round(number), 1) for number in left)
    given = {"share": share, "steps": steps, "third": max(steps // 3, 1)}
    return [
        text.format(first=first, second=second, hidden=hidden, **given) for text in METHODS[method]
    ]


def measured(folder: Path, texts: list[str], images: int, workdir: Path, judge: Judge) -> dict:
    """Compresses and judges, or reads what was found before."""
    result = folder.with_name(f"{folder.name}.json")
    if not result.exists():
        steps = chosen_steps(texts)
        if not (folder / "compressed.json").exists():
            given = {"images": images}
            compress(workdir, folder, steps, calibration=given, sums=folder.with_name("sums"))
        record = json.loads((folder / "compressed.json").read_text())
        last = record["steps"][-1]
        bits = last["told"].get("bits", 32)
        found = {"bits": bits, **last["after"], **judge(load_run(folder))}
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


def parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--workdir", type=Path, nargs="+", help="runs of the digits; none: they are trained")
    add(
        "--configs",
        nargs="+",
        default=[f"configs/digits.py:{name}" for name in ("dit-moe", "promoe")],
        metavar="CONFIG",
        help="of the runs to train (default: a DiT-MoE and a ProMoE)",
    )
    add("--train_steps", type=int, default=1200, help="(default: 1200)")
    add("--shares", type=float, nargs="+", default=[0.25, 0.5], help="(default: 0.25 0.5)")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    add("--stage_steps", type=int, default=300, help="of training after slim (default: 300)")
    add("--samples", type=int, default=400, help="of each seed (default: 400)")
    add("--seeds", type=int, default=3, help="(default: 3)")
    add("--steps", type=int, help="of the solver (default: as the run samples)")
    add("--images", type=int, default=64, help="of calibration (default: 64)")
    add("--output", type=Path, default=Path("runs/compression"), help="folder of the models")
    return parser.parse_known_args()


def main() -> None:
    arguments, overrides = parse()
    workdirs = arguments.workdir or [
        trained(arguments.output / f"run-{number}", config, arguments.train_steps, overrides)
        for number, config in enumerate(arguments.configs)
    ]
    for workdir in workdirs:
        found = compare(workdir, arguments)
        print(f"\n{load_run(workdir).config.name}\n")
        print_table(found)


def compare(workdir: Path, arguments: argparse.Namespace) -> dict[str, dict]:
    """A row for the original, for its noise, and for each method and share."""
    run, output = load_run(workdir), arguments.output / f"of-{workdir.name}"
    # Not those that the methods see.
    settings = calibration_settings(run.config, images=arguments.images, seed=1)
    held = calibrate(run.config, settings, output / "held")
    judge = Judge(run, arguments.samples, arguments.seeds, arguments.steps, held)
    size = dataclasses.asdict(size_of(read_model(workdir, ema=True), thin=False))
    original = {"bits": 32, **size, **judge.original}
    found = {"the original": original}
    found["the original, next seed"] = {**original, "to original": judge.noise()}
    for method in arguments.methods:
        for share in arguments.shares if method in BY_SHARE else [0.0]:
            texts = steps_of(method, share, run.config.model, arguments.stage_steps)
            name = f"{method}, {share:.0%} away" if share else method
            try:
                found[name] = measured(
                    output / f"{method}-{share}", texts, arguments.images, workdir, judge
                )
            except ConfigError as error:
                print(f"{name}: {error}", flush=True)
                continue
            print(f"{name}: {found[name]}", flush=True)
            jax.clear_caches()
    return found


def print_table(found: dict[str, dict]) -> None:
    heads = (
        "",
        "bytes",
        "bits",
        "active",
        "error near noise",
        "in the middle",
        "near data",
        "to the original",
        "to the data",
        "class shown",
    )
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for name, row in found.items():
        errors = " | ".join(f"{row[f'error {i}']:.2g}" for i in range(3))
        print(
            f"| {name} | {row['bytes']:,} | {row['bits']:.3g} | {row['active']:,.0f} | {errors} "
            f"| {row['to original']:.3f} | {row['to data']:.2f} ± {row['spread']:.2f} "
            f"| {row['class']:.1%} |"
        )


if __name__ == "__main__":
    main()
