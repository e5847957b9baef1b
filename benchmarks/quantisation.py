"""Bytes, error and speed of quantised networks beside the original.

The network is trained on the handwritten digits first. Errors are of what it predicts for noised
digits that calibration has not seen, at the same times, over the size of what the original
predicts. All rows are timed in turns, and the fastest of their repeats counts.
"""

import argparse
import tempfile
from pathlib import Path

import jax
import numpy as np
from etils import epath

from benchmarks.timing import Timed, fastest, machine
from dit_moe.config.files import load_file
from dit_moe.models.parameters import functional
from dit_moe.runs.loading import load_run
from dit_moe.surgery.compress.calibration import calibrate, calibration_settings
from dit_moe.surgery.compress.quantise import QuantiseSettings, quantise
from dit_moe.surgery.compress.steps import Model
from dit_moe.training.loop import train

COLUMNS = """\
columns
  bits       mean of the packed matrices; 32: the original
  bytes      of all parameters, over those of the original in float32
  error      mean square of the change of what is predicted, over that of the prediction
  time       of a batch, over that of the original
"""
METHODS = ("nearest", "hqq", "gptq")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=COLUMNS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, help="a run on the digits, in place of a new one")
    parser.add_argument("--config", default="configs/digits.py:dit-moe", help="of a new run")
    parser.add_argument("--training_steps", type=int, default=300, help="of a new run")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4, 3], help="a row each")
    parser.add_argument("--group", type=int, default=32, help="inputs that share a scale")
    parser.add_argument("--images", type=int, default=64, help="of calibration, at each time")
    parser.add_argument("--times", type=int, default=25, help="of calibration")
    parser.add_argument("--repeats", type=int, default=5, help="of each row (default 5)")
    return parser.parse_args()


def trained(arguments: argparse.Namespace, folder: Path) -> Model:
    """The run, with its average."""
    workdir = arguments.workdir
    if workdir is None:
        workdir = folder / "run"
        number = arguments.training_steps
        counts = {"steps": number, "warmup_steps": number // 10}
        steps = [f"--config.train.{name}={count}" for name, count in counts.items()]
        quiet = [f"--config.train.{name}=0" for name in ("sample_every", "validate_every")]
        train(load_file(arguments.config, [*steps, *quiet]), epath.Path(workdir))
    run = load_run(workdir)
    parameters = {path: np.asarray(p) for path, p in run.parameters.items()}
    return Model(run.config, parameters, ema=True, step=run.step)


def contestant(model: Model, batches: list) -> tuple[Timed, np.ndarray]:
    """The network on a batch, to be timed, and what it predicts for all."""
    bind, parameters = functional(model.config.model), jax.device_put(dict(model.parameters))

    @jax.jit
    def run(parameters, x, t, y):
        return bind(parameters)(x, t, y).value

    found = [np.asarray(run(parameters, b.x, b.t, b.y)) for b in batches]
    first = batches[0]
    timed = lambda: jax.block_until_ready(run(parameters, first.x, first.t, first.y))  # noqa: E731
    return timed, np.concatenate(found)


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    model = trained(arguments, folder)
    given = {"images": arguments.images, "times": arguments.times}
    shown, unseen = (
        calibrate(model.config, calibration_settings(model.config, seed=seed, **given), folder)
        for seed in (0, 1)
    )
    batches = list(unseen.batches())
    rows = {"original": (32.0, model)}
    for bits in arguments.bits:
        for method in METHODS:
            settings = QuantiseSettings(bits=bits, method=method, group=arguments.group)
            done = quantise(model, settings, shown)
            rows[f"{bits} bits, {method}"] = done.told["bits"], done.model
    contestants = {name: contestant(one, batches) for name, (_, one) in rows.items()}
    times = fastest({name: timed for name, (timed, _) in contestants.items()}, arguments.repeats)
    reference = contestants["original"][1]
    size = sum(p.nbytes for p in model.parameters.values())
    print(machine(), end="\n\n")
    print("| | bits | bytes | error | time |\n|---|---|---|---|---|")
    for name, (bits, one) in rows.items():
        share = sum(p.nbytes for p in one.parameters.values()) / size
        change = np.square(contestants[name][1] - reference).mean() / np.square(reference).mean()
        relative = times[name] / times["original"]
        print(f"| {name} | {bits:.2f} | {share:.3f} | {change:.2e} | {relative:.2f} |")


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory() as folder:
        compare(arguments, Path(folder))


if __name__ == "__main__":
    main()
