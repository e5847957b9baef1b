"""Trains a teacher, and students of half its depth with and without it, and compares them.

The students see the same batches and noise; each starts at random, or from every other block of
the teacher. Runs and results are kept in --output, so that the same command goes on where it
stopped. Fields of the config can be given as to train.py.
"""

import argparse
import csv
import dataclasses
from pathlib import Path

import jax
from benchmarks.quality import Judge, measure

from dit_moe.config import Config, DistillConfig
from dit_moe.config.files import load_file
from dit_moe.training.loop import train


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


def heldout_loss(workdir: Path) -> float:
    with (workdir / "metrics.csv").open(newline="") as file:
        return float(list(csv.DictReader(file))[-1]["validation/loss"])


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
    judge = Judge("digits")
    teacher = arguments.output / "teacher"
    first = configure(base, arguments.teacher_steps, arguments.batch_size, 0)
    found = {f"teacher, {first.model.depth} blocks": (measure(judge, first, teacher), teacher)}
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
            if start != "at random" and not (workdir / "quality.json").exists():
                train(config, workdir, init_from=str(teacher), init_layers=layers)
            found[title] = measure(judge, config, workdir), workdir
            print(f"{title}: {found[title][0]}", flush=True)
            jax.clear_caches()
    print("\n| model | held-out loss | Fréchet distance | class recognised |\n|---|---|---|---|")
    for title, (result, workdir) in found.items():
        print(
            f"| {title} | {heldout_loss(workdir):.4f} | {result['frechet']:.2f} "
            f"| {result['accuracy']:.1%} |"
        )


if __name__ == "__main__":
    main()
