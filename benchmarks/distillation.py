"""Trains a teacher, and students of half its depth with and without it, and compares them.

The students see the same batches and noise; each starts at random, or from every other block of
the teacher. Runs and results are kept in --output, so that the same command goes on where it
stopped. Fields of the config can be given as to train.py.
"""

import argparse
import csv
import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np

from benchmarks.embedded_judge import EmbeddedJudge
from dit_moe.config import Config, DistillConfig
from dit_moe.config.files import load_file
from dit_moe.runs.loading import load_run
from dit_moe.sampling.request import build_request
from dit_moe.sampling.sampler import build_sampler, generate
from dit_moe.storage.files import atomic
from dit_moe.storage.images import to_uint8
from dit_moe.training.loop import train

SAMPLES, BATCH = 400, 200


def configure(config: Config, steps: int, batch_size: int, seed: int) -> Config:
    settings = dataclasses.replace(
        config.train,
        steps=steps,
        batch_size=batch_size,
        warmup_steps=steps // 10,
        checkpoint_every=steps,
        sample_every=0,
        validate_every=steps,
    )
    return dataclasses.replace(config, train=settings, seed=seed)


def with_half_the_depth(config: Config, distill: DistillConfig | None) -> Config:
    model = dataclasses.replace(config.model, depth=config.model.depth // 2)
    settings = dataclasses.replace(config.train, distill=distill)
    return dataclasses.replace(config, model=model, train=settings)


def measure(
    judge: EmbeddedJudge, config: Config, workdir: Path, layers: tuple[int, ...] = ()
) -> dict[str, float]:
    """Trains and judges one run, or reads what was found before.

    With layers, it starts from these blocks of its teacher, which lies beside it.
    """
    result = workdir / "result.json"
    if result.exists():
        return json.loads(result.read_text())
    teacher = str(workdir.with_name("teacher")) if layers else None
    if train(config, workdir, init_from=teacher, init_layers=layers) is not None:
        sys.exit("Stopped. Give the same command again to go on.")
    with (workdir / "metrics.csv").open(newline="") as file:
        loss = float(list(csv.DictReader(file))[-1]["validation/loss"])
    request = build_request(config, num_samples=SAMPLES)
    sampler = build_sampler(config, request)
    x = np.concatenate([*generate(sampler, load_run(workdir).parameters, request, BATCH)])
    found = {"loss": loss, "frechet": judge.distance(to_uint8(x))}
    with atomic(result) as temporary:
        temporary.write_text(json.dumps(found))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--config", default="configs/digits.py:dit-moe", help="of the teacher")
    add("--teacher_steps", type=int, default=1200, help="(default: 1200)")
    add("--steps", type=int, default=400, help="of each student (default: 400)")
    add("--batch_size", type=int, default=64, help="(default: 64)")
    add("--coefficient", type=float, default=1.0, help="train.distill.coefficient (default: 1)")
    add("--output", type=Path, default=Path("runs/distillation"), help="folder of the runs")
    arguments, overrides = parser.parse_known_args()

    base = load_file(arguments.config, overrides)
    judge = EmbeddedJudge("digits")
    teacher = arguments.output / "teacher"
    first = configure(base, arguments.teacher_steps, arguments.batch_size, 0)
    found = {f"teacher, {first.model.depth} blocks": measure(judge, first, teacher)}
    layers = tuple(range(0, first.model.depth, 2))
    plain = configure(base, arguments.steps, arguments.batch_size, 1)
    taught = DistillConfig(str(teacher), arguments.coefficient)
    to_the_end = dataclasses.replace(taught, stop_at=1.0)
    for start in ("at random", "from its blocks"):
        for name, distill in {
            "alone": None,
            "taught for 70% of the steps": taught,
            "taught to the end": to_the_end,
        }.items():
            title = f"student {start}, {name}"
            workdir = arguments.output / title.replace(" ", "-").replace(",", "").replace("%", "")
            config = with_half_the_depth(plain, distill)
            taken = () if start == "at random" else layers
            found[title] = measure(judge, config, workdir, taken)
            print(f"{title}: {found[title]}", flush=True)
            jax.clear_caches()
    print("\n| model | held-out loss | Fréchet distance |\n|---|---|---|")
    for title, result in found.items():
        print(f"| {title} | {result['loss']:.4f} | {result['frechet']:.2f} |")


if __name__ == "__main__":
    main()
