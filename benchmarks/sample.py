"""Images a second by solver, steps and guidance, and what a second pass or an interval costs.

The network has random parameters: time does not depend on them. Contestants are timed in turns;
the ratio is to the first, whose evaluations all others should cost in proportion.
"""

import argparse

import jax
import jax.numpy as jnp

from benchmarks.timing import Timed, fastest, machine
from dit_moe.config.files import load_file
from dit_moe.models.parameters import init_parameters
from dit_moe.sampling.evaluations import function_evaluations
from dit_moe.sampling.request import build_request
from dit_moe.sampling.sampler import build_sampler

PLAIN = {"scale": 1.0}
GUIDED = {"scale": 2.0}
CASES = {
    "euler 16": ({"solver": "euler", "steps": 16}, PLAIN),
    "euler 32": ({"solver": "euler", "steps": 32}, PLAIN),
    "heun 16": ({"solver": "heun", "steps": 16}, PLAIN),
    "dpmpp_2m 16": ({"solver": "dpmpp_2m", "steps": 16}, PLAIN),
    "unipc 16": ({"solver": "unipc", "steps": 16}, PLAIN),
    "euler 16, guided": ({"solver": "euler", "steps": 16}, GUIDED),
    "euler 16, guided in t 0.25 to 0.75": (
        {"solver": "euler", "steps": 16},
        GUIDED | {"interval": (0.25, 0.75)},
    ),
}
"""What is changed of the solver and of the guidance."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/digits.py", metavar="FILE[:ARGUMENT]")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()

    config = load_file(arguments.config)
    parameters = init_parameters(config.model, jax.random.key(0))
    key_N = jax.random.split(jax.random.key(1), arguments.batch_size)
    y_N = jnp.arange(arguments.batch_size) % config.model.num_classes
    contestants: dict[str, Timed] = {}
    evaluations = {}
    for name, (integration, guidance) in CASES.items():
        request = build_request(
            config,
            num_samples=arguments.batch_size,
            integration=integration,
            guidance=guidance,
        )
        sampler = build_sampler(config, request)
        contestants[name] = lambda draw=sampler: jax.block_until_ready(draw(parameters, key_N, y_N))
        evaluations[name] = function_evaluations(config.model, config.objective, request)
    seconds = fastest(contestants, arguments.repeats)

    first = next(iter(CASES))
    print(f"{config.name}, batch {arguments.batch_size}; {machine()}")
    print("| solver and steps | evaluations an image | images/s | time / first | per evaluation |")
    print("|---|---|---|---|---|")
    for name, elapsed in seconds.items():
        time, work = elapsed / seconds[first], evaluations[name] / evaluations[first]
        print(
            f"| {name} | {evaluations[name]} | {arguments.batch_size / elapsed:.1f} "
            f"| {time:.2f} | {time / work:.2f} |"
        )


if __name__ == "__main__":
    main()
