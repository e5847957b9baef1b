"""Time and temporary memory of a gradient under each `model.remat`, over storing everything."""

import argparse
import dataclasses

import jax
import jax.numpy as jnp

from benchmarks.timing import fastest
from dit_moe.config import Config
from dit_moe.config.files import load_file
from dit_moe.diffusion.integrate import build_objective
from dit_moe.models.parameters import functional, init_parameters

SETTINGS = ("none", "dots", "full")


def compile_gradient(config: Config, remat: str) -> jax.stages.Compiled:
    model = dataclasses.replace(config.model, remat=remat)
    bind, objective = functional(model), build_objective(config.objective)
    n = config.train.batch_size
    key_N = jax.random.split(jax.random.key(0), n)
    x_NxHxWxC = jnp.zeros((n, *model.image_shape))
    y_N = jnp.arange(n) % model.num_classes

    def loss(parameters):
        return objective.loss(bind(parameters), key_N, x_NxHxWxC, y_N)[0]

    parameters = init_parameters(model, jax.random.key(0))
    return jax.jit(jax.grad(loss)).lower(parameters).compile()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/digits.py", metavar="FILE[:ARGUMENT]")
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()

    config = load_file(arguments.config)
    parameters = init_parameters(config.model, jax.random.key(0))
    gradients = {remat: compile_gradient(config, remat) for remat in SETTINGS}
    runs = {
        remat: lambda run=gradient: jax.block_until_ready(run(parameters))
        for remat, gradient in gradients.items()
    }
    seconds = fastest(runs, arguments.repeats)
    base_time = seconds["none"]
    base_memory = gradients["none"].memory_analysis().temp_size_in_bytes
    print(f"{config.name}, gradient of a batch of {config.train.batch_size}, over remat none:")
    print("remat   time  memory")
    for remat in SETTINGS:
        memory = gradients[remat].memory_analysis().temp_size_in_bytes
        print(f"{remat:5s} {seconds[remat] / base_time:6.2f} {memory / base_memory:7.2f}")


if __name__ == "__main__":
    main()
