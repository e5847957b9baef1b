"""Compile time of the train step against depth: 40 layers beside 4, in one run.

The blocks are scanned, so the ratio should stay near 1 (at most 2 is promised).
"""

import argparse
import dataclasses
import time

import jax
import jax.numpy as jnp

from dit_moe.config import Config, MeshConfig
from dit_moe.config.presets import PRESET_NAMES, preset
from dit_moe.devices.mesh import build_mesh, replicated
from dit_moe.runs.state import init_state
from dit_moe.training.step import build_step


def compile_seconds(config: Config) -> float:
    """Seconds to compile the train step from abstract shapes: no memory for parameters."""
    mesh = build_mesh(MeshConfig(), jax.devices()[:1])
    model, n = config.model, config.train.batch_size
    with jax.set_mesh(mesh):
        state = jax.eval_shape(lambda: init_state(config.model, config.train, mesh, config.seed))
        x = jax.ShapeDtypeStruct((n, *model.image_shape), "float32")
        y = jax.ShapeDtypeStruct((n,), jnp.int32, sharding=replicated(mesh))
        lowered = jax.jit(
            build_step(config.model, config.objective, config.train, config.seed), donate_argnums=0
        ).lower(state, x, y)
        start = time.perf_counter()
        lowered.compile()
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESET_NAMES, default="DiT-MoE-S/2-8E2A")
    parser.add_argument("--depths", type=int, nargs=2, default=(4, 40), metavar=("A", "B"))
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()

    base = preset(arguments.preset)
    base = dataclasses.replace(
        base, train=dataclasses.replace(base.train, batch_size=arguments.batch_size)
    )
    best = {depth: float("inf") for depth in arguments.depths}
    for _ in range(arguments.repeats):
        for depth in arguments.depths:
            config = dataclasses.replace(base, model=dataclasses.replace(base.model, depth=depth))
            jax.clear_caches()
            best[depth] = min(best[depth], compile_seconds(config))
    shallow, deep = arguments.depths
    print(f"{arguments.preset}, train step, best of {arguments.repeats}:")
    for depth in arguments.depths:
        print(f"  depth {depth:3d}: {best[depth]:6.2f} s")
    print(f"  ratio {best[deep] / best[shallow]:.2f} (depth {deep} / depth {shallow})")


if __name__ == "__main__":
    main()
