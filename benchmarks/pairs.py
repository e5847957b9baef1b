"""Compares one model of pairs, which draws either image of the other, with a model for each way.

All start from the same run of single images and have the same additions; the one model has as many
steps as both others together. Those for one way see the image that is given without noise, and
learn the other one alone. The error is
that of the predicted velocity on held-out pairs, with the given image clean, over all times; beside
it that of the drawn second images to the true ones. Runs and results are kept in --output, so that
the same command goes on where it stopped. Fields of the config can be given as to train.py.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dit_moe.config import Config
from dit_moe.config.files import load_file
from dit_moe.data.pipeline import batches
from dit_moe.data.sources import build_sources
from dit_moe.devices.mesh import build_mesh
from dit_moe.diffusion.denoiser import mean_per_example
from dit_moe.diffusion.integrate import build_objective
from dit_moe.models.frozen import split_learning
from dit_moe.models.parameters import functional
from dit_moe.pairs.denoise import Stream
from dit_moe.pairs.sampler import build_pairs_sampler
from dit_moe.pairs.start import pairs_config
from dit_moe.runs.loading import load_run
from dit_moe.runs.optimizer import build_optimizer
from dit_moe.runs.state import start_state
from dit_moe.sampling.request import build_request
from dit_moe.storage.files import atomic
from dit_moe.training.loop import train

WAYS = {"image of condition": 0, "condition of image": 1}
"""Which image of a pair is drawn."""
HELDOUT, TIMES = 256, 8


def configure(config: Config, steps: int, batch_size: int) -> Config:
    settings = dataclasses.replace(
        config.train,
        steps=steps,
        batch_size=batch_size,
        warmup_steps=steps // 10,
        checkpoint_every=steps,
        sample_every=0,
        validate_every=0,
    )
    return dataclasses.replace(config, train=settings)


def build_error(config: Config, drawn: int):
    """From parameters, keys and pairs to the mean error of the image that is drawn, by each key's
    own time and noise; the other one has none."""
    objective, bind = build_objective(config.objective), functional(config.model)

    def error(parameters, key_P, x_Px2xHxWxC, y_P):
        network = bind(parameters)
        image, given = x_Px2xHxWxC[:, drawn], x_Px2xHxWxC[:, 1 - drawn]
        pairs = [None, None]

        def one(x, t_P, labels_P):
            pairs[drawn], pairs[1 - drawn] = x, given
            times = [jnp.zeros_like(t_P)] * 2
            times[drawn] = t_P
            rows = jnp.stack(pairs, 1).reshape(-1, *x.shape[1:])
            found = network(rows, jnp.stack(times, 1).reshape(-1), jnp.repeat(labels_P, 2))
            return dataclasses.replace(found, value=found.value[drawn::2], losses={})

        _, (metrics, _) = objective.loss(one, key_P, image, y_P)
        return metrics["loss"]

    return error


def heldout(config: Config):
    """Pairs that nothing was trained on, x [P, 2, H, W, C] and labels [P]."""
    sources = build_sources(config.data, config.model, "validation")
    plain = dataclasses.replace(config.data, flip=False)
    batch = next(batches(sources, plain, 2 * HELDOUT, 0))
    x = np.asarray(batch.x)
    return x.reshape(-1, 2, *x.shape[1:]), np.asarray(batch.label)[::2]


def train_one_way(config: Config, base: Path, drawn: int):
    """Parameters of a model that learns one way alone, by the optimiser of the config."""
    optimizer, error = build_optimizer(config.train), build_error(config, drawn)
    mesh = build_mesh(config.mesh)
    with jax.set_mesh(mesh):
        loaded = load_run(base).parameters
        state = start_state(config.model, config.train, mesh, loaded, config.seed)
        learning, frozen = split_learning(state.parameters, config.train)
        moments, decay = optimizer.init(learning), config.train.ema_decay

        @jax.jit
        def step(learning, average, moments, key, x, y_P):
            def loss(learning):
                key_P = jax.random.split(key, len(y_P))
                return error({**learning, **frozen}, key_P, x, y_P)

            updates, moments = optimizer.update(jax.grad(loss)(learning), moments, learning)
            learning = optax.apply_updates(learning, updates)
            average = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, average, learning)
            return learning, average, moments

        average = learning
        sources = build_sources(config.data, config.model)
        stream = batches(sources, config.data, config.train.batch_size, config.seed)
        for number in range(config.train.steps):
            batch = next(stream)
            x = np.asarray(batch.x)
            pairs, label = x.reshape(-1, 2, *x.shape[1:]), np.asarray(batch.label)[::2]
            key = jax.random.fold_in(jax.random.key(config.seed), number)
            learning, average, moments = step(learning, average, moments, key, pairs, label)
    return {**average, **frozen}


def measure(config: Config, parameters, drawn: int) -> dict[str, float]:
    """The held-out error one way, and of drawn second images the distance from the true ones."""
    x, label = heldout(config)
    error = jax.jit(build_error(config, drawn))
    keys = [jax.random.split(jax.random.key(i), len(label)) for i in range(TIMES)]
    found = {"error": float(np.mean([error(parameters, key_P, x, label) for key_P in keys]))}
    if drawn == 1:
        request = build_request(
            config,
            num_samples=len(label),
            integration={"solver": "heun", "steps": 15},
            guidance={"scale": 1},
        )
        sampler = build_pairs_sampler(
            config, request, lambda given: (Stream(level=0.0, given=given), Stream())
        )
        key_N = jax.random.split(jax.random.key(0), len(label))
        drawn_pairs = sampler(parameters, key_N, label, x[:, 0])
        off = jnp.sqrt(mean_per_example(jnp.square(drawn_pairs[:, 1] - x[:, 1])).mean())
        found["distance"] = float(off)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--config", default="configs/digits.py:dit", help="of the run of single images")
    add("--pair", default="edges", help="the second images (default: edges)")
    add("--base_steps", type=int, default=1200, help="(default: 1200)")
    add("--steps", type=int, default=1200, help="of each model for one way (default: 1200)")
    add("--batch_size", type=int, default=64, help="images of a step (default: 64)")
    add("--output", type=Path, default=Path("runs/pairs"), help="folder of the runs")
    arguments, overrides = parser.parse_known_args()

    first = configure(
        load_file(arguments.config, overrides), arguments.base_steps, arguments.batch_size
    )
    base = arguments.output / "base"
    config, whole = (
        pairs_config(configure(first, steps, arguments.batch_size // 2), arguments.pair)
        for steps in (arguments.steps, 2 * arguments.steps)
    )
    for workdir, settings, start in (
        (base, first, None),
        (arguments.output / "both", whole, str(base)),
    ):
        if train(settings, workdir, init_from=start) is not None:
            sys.exit("Stopped. Give the same command again to go on.")
    both = load_run(arguments.output / "both", pairs=True).parameters
    print("| drawn | one model | a model of its own | ratio |\n|---|---|---|---|", flush=True)
    for way, drawn in WAYS.items():
        result = arguments.output / f"{way.replace(' ', '-')}.json"
        if not result.exists():
            own = measure(config, train_one_way(config, base, drawn), drawn)
            with atomic(result) as temporary:
                temporary.write_text(json.dumps(own))
        own = json.loads(result.read_text())
        for name, value in measure(config, both, drawn).items():
            title = way if name == "error" else f"{way}, distance"
            row = f"| {title} | {value:.4f} | {own[name]:.4f} | {value / own[name]:.3f} |"
            print(row, flush=True)


if __name__ == "__main__":
    main()
