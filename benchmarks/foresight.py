"""Which experts of the next layer are known beforehand, while a run draws: recall, misses, bytes.

    python -m benchmarks.foresight --workdir runs/xl --images 1 --steps 20

One image has few tokens, so that not all experts are used: with many, every predictor is right.
"""

import argparse
from pathlib import Path

import jax
import numpy as np

from dit_moe.analysis.foresight import Foresight, predictors, table
from dit_moe.runs.loading import load_run
from dit_moe.runs.weights import has_average
from dit_moe.sampling.evaluations import rows_of_evaluations
from dit_moe.sampling.request import build_request
from dit_moe.sampling.sampler import build_sampler, image_keys
from dit_moe.streaming.layout import layers_of


def main() -> None:
    """Prints tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    run = load_run(arguments.workdir, has_average(arguments.workdir))
    config, images = run.config, arguments.images
    request = build_request(
        config,
        num_samples=images,
        integration={"solver": "euler", "steps": arguments.steps},
        guidance={"scale": 1.0},
    )
    calls = len(rows_of_evaluations(config.model, config.objective, request)[0])

    @jax.jit
    def draw(parameters: dict[str, jax.Array]) -> jax.Array:
        foresight = Foresight(config.model, calls)
        sampler = build_sampler(config, request, bind=foresight.bind)
        sampler(parameters, image_keys(0, np.arange(images)), request.labels())
        return foresight.tokens()

    tokens = np.asarray(draw(run.parameters))
    block = max(layer.block for layer in layers_of(config.model, config.model.dtype))
    print(table(predictors(tokens), block))


if __name__ == "__main__":
    main()
