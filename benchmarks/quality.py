"""Trains dense and sparse models of equal active size alike, and compares their samples.

Every model is trained with several seeds; the table shows mean and standard deviation over them.
Runs and results are kept in --output, so that the same command goes on where it stopped. Fields of
the config can be given as to train.py, such as --config.model.patch_size=8.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from benchmarks.embedded_judge import EmbeddedJudge
from dit_moe.config import Config, MoEConfig, PrototypeRouterConfig
from dit_moe.config.files import load_file
from dit_moe.config.presets import small_moe
from dit_moe.runs.loading import load_run
from dit_moe.sampling.request import build_request
from dit_moe.sampling.sampler import build_sampler, generate
from dit_moe.storage.files import atomic
from dit_moe.storage.images import to_uint8
from dit_moe.training.loop import train
from eval.features.embedded import EMBEDDED

SAMPLES, BATCH = 400, 200
CLASSIFIER_IMAGES = 5000


def variants() -> dict[str, MoEConfig | None]:
    """Mixtures by name; each token's feed-forward has 8 width^2 parameters in all of them."""
    promoe, dit_moe = small_moe("promoe"), small_moe("dit-moe")
    assert promoe is not None
    assert dit_moe is not None
    no_contrast = PrototypeRouterConfig(contrastive_coef=0.0)
    return {
        "DiT (dense)": None,
        # Two experts of width^2 and a shared one of 2/3 width^2, three matrices each.
        "DiT-MoE": dataclasses.replace(dit_moe, shared_hidden_ratio=85 / 128),
        "ProMoE": promoe,
        "ProMoE, no contrastive loss": dataclasses.replace(promoe, router=no_contrast),
        "ProMoE, no unconditional expert": dataclasses.replace(promoe, unconditional_expert=False),
        "EC-DiT (expert choice)": small_moe("ec-dit"),
    }


class Judge:
    """Distance from held-out pictures, and how many samples show the class that was asked for."""

    def __init__(self, dataset: str):
        self.judge, self.describe = EmbeddedJudge(dataset), EMBEDDED[dataset].describe
        image_NxHxWxC, label_N = self.judge.load("train")
        rows = np.random.default_rng(0).permutation(len(label_N))[:CLASSIFIER_IMAGES]
        with threadpool_limits(limits=1):
            # Of another kind than the network that yields the features.
            self.classifier = SVC(C=10).fit(self.describe(image_NxHxWxC[rows]), label_N[rows])
        self.ceiling = self(*self.judge.heldout(SAMPLES))

    def __call__(self, image_NxHxWxC: np.ndarray, label_N: np.ndarray) -> dict[str, float]:
        right_N = self.classifier.predict(self.describe(image_NxHxWxC)) == label_N
        return {
            "frechet": self.judge.distance(image_NxHxWxC),
            "accuracy": float(right_N.mean()),
        }


def configure(
    config: Config, moe: MoEConfig | None, seed: int, steps: int, batch_size: int
) -> Config:
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, moe=moe),
        train=dataclasses.replace(
            config.train,
            steps=steps,
            batch_size=batch_size,
            warmup_steps=steps // 10,
            checkpoint_every=steps,
            sample_every=steps,
        ),
        seed=seed,
    )


def measure(judge: Judge, config: Config, workdir: Path) -> dict[str, float]:
    """Trains and judges one run, or reads what was found before."""
    result = workdir / "quality.json"
    if result.exists():
        return json.loads(result.read_text())
    signal = train(config, workdir)
    if signal is not None:
        sys.exit("Stopped. Give the same command again to go on.")
    request = build_request(config, num_samples=SAMPLES)
    sampler = build_sampler(config, request)
    x = np.concatenate([*generate(sampler, load_run(workdir).parameters, request, BATCH)])
    found = judge(to_uint8(x), request.labels())
    with atomic(result) as temporary:
        temporary.write_text(json.dumps(found))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--dataset", choices=("digits", "patches"), default="digits")
    names = tuple(variants())
    add("--models", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    add("--steps", type=int, default=1200, help="of training (default: 1200)")
    add("--batch_size", type=int, default=64, help="of training (default: 64)")
    add("--seeds", type=int, default=3, help="runs of every model (default: 3)")
    add("--output", type=Path, default=Path("runs/quality"), help="folder of the runs")
    arguments, overrides = parser.parse_known_args()

    base = load_file(f"configs/{arguments.dataset}.py:dit", overrides)
    judge = Judge(arguments.dataset)
    rows = []
    # Seed by seed, so that a run that is stopped early compares all models.
    found: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.models}
    for seed in range(arguments.seeds):
        for number, (name, moe) in enumerate(variants().items()):
            if name not in found:
                continue
            kind = f"{arguments.dataset}-{arguments.steps}x{arguments.batch_size}"
            folder = f"{kind}-{number}-{seed}"
            config = configure(base, moe, seed, arguments.steps, arguments.batch_size)
            found[name].append(measure(judge, config, arguments.output / folder))
            print(f"{name}, seed {seed}: {found[name][-1]}", flush=True)
            jax.clear_caches()
    for name, results in found.items():
        frechet, accuracy = (np.array([r[k] for r in results]) for k in ("frechet", "accuracy"))
        rows.append(
            f"| {name} | {frechet.mean():.2f} ± {frechet.std():.2f} "
            f"| {accuracy.mean():.1%} ± {accuracy.std():.1%} |"
        )
    ceiling = judge.ceiling
    rows.append(f"| held-out pictures | {ceiling['frechet']:.2f} | {ceiling['accuracy']:.1%} |")
    print(
        f"\n{arguments.dataset}, {arguments.steps} steps of {arguments.batch_size} images, "
        f"{arguments.seeds} seeds each:"
    )
    print("| model | Fréchet distance | class recognised |\n|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
